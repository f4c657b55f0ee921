"""TAEHV: a tiny autoencoder over the latents of a large one, under the names of its published weights.

Layers, widths, names and ranges are those of github.com/madebyollin/taehv (MIT) at 1f14a56, whose
`taew2_1.pth` is for the latents of Wan 2.1 and of all that share its autoencoder. These weights were
never run here; the tests only check that the architecture is the one described there.

- Latents are Wan's *normalised* ones, as a denoiser makes them, so nothing is converted. Its README:
  "TAEHV does not use any latent scales / shifts"; its notebook for Wan 2.1 gives the pipeline a mean of
  0 and a deviation of 1 in place of Wan's own.
  LightTAE (lightx2v/Autoencoders) has the same tensors for latents that are *not* normalised: its own code
  (`WanVAE_tiny` of ModelTC/LightX2V, `need_scaled`) scales them first, by the large autoencoder's statistics.
- `taew2_2.pth`, for the 48 channels of Wan 2.2's TI2V, folds squares of 2 x 2 pixels into channels.
- Pixels are in [0, 1] on both sides.
- A latent frame decodes to four frames, and the first three of a video are left out: so the first
  latent frame stands for one frame, as in Wan.
- The encoder takes four frames for each latent frame, the first four for the first: three later ones
  than Wan's does. At its end a video is continued with copies of its last frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmla.vae.stream import FrameStream, NearestUpsample, PreviousFrameLayer, TimeGrow, TimePool, fold

BLOCKS = 3
"""`MemBlock`s at each size of the picture."""
BOUND = 3.0
"""Latents are bounded to this, smoothly: normalised ones have deviation 1."""


@dataclass(frozen=True, kw_only=True)
class TaehvConfig:
    """Sizes of a `Taehv` decoder, as TAEHV's files have them."""

    latent_channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    """Channels of the decoder at 1/8, 1/4, 1/2 and all of the picture's size."""
    encoder_width: int = 64
    """Channels of the encoder at every size."""
    patch: int = 1
    """Side of the squares of pixels that are folded into channels."""


TAEHV_CONFIGS = {
    "taew2_1": TaehvConfig(),
    "taew2_2": TaehvConfig(latent_channels=48, patch=2),
    "debug": TaehvConfig(latent_channels=4, widths=(16, 8, 8, 8), encoder_width=8),
}


class Clamp(nn.Module):
    """Bounds latents, so that a denoiser's outlier does not saturate the picture."""

    def forward(self, x: Tensor) -> Tensor:
        """x to 3 tanh(x / 3)."""
        return BOUND * torch.tanh(x / BOUND)


class MemBlock(PreviousFrameLayer):
    """relu(x + conv(relu(conv(relu(conv([x, before])))))), each over 3 x 3 cells."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x, before [n, width, h, w]: each frame and its predecessor."""
        return F.relu(x + self.conv(torch.cat([x, before], dim=1)))


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def _shrink(width: int, times: int) -> list[nn.Module]:
    """`times` frames to one of half the size, then `MemBlock`s."""
    pool, halve = TimePool(width, times, bias=False), _conv(width, width, stride=2, bias=False)
    return [pool, halve, *(MemBlock(width) for _ in range(BLOCKS))]


def _grow(width: int, following: int, times: int) -> list[nn.Module]:
    """`MemBlock`s, then one frame to `times` of twice the size and of `following` channels."""
    grow = TimeGrow(width, times, bias=False)
    upsample, last = NearestUpsample(), _conv(width, following, bias=False)
    return [*(MemBlock(width) for _ in range(BLOCKS)), upsample, grow, last]


def _encoder(config: TaehvConfig) -> FrameStream:
    width = config.encoder_width
    return FrameStream(
        _conv(3 * config.patch**2, width), nn.ReLU(),
        *_shrink(width, 2), *_shrink(width, 2), *_shrink(width, 1),
        _conv(width, config.latent_channels),
    )  # fmt: skip


def _decoder(config: TaehvConfig) -> FrameStream:
    at_8, at_4, at_2, at_1 = config.widths
    return FrameStream(
        Clamp(), _conv(config.latent_channels, at_8), nn.ReLU(),
        *_grow(at_8, at_4, 1), *_grow(at_4, at_2, 2), *_grow(at_2, at_1, 2),
        nn.ReLU(), _conv(at_1, 3 * config.patch**2),
    )  # fmt: skip


class Taehv(nn.Module):
    """A `vmla.vae.Codec` that computes in the type of its weights."""

    temporal_ratio = 4
    first_frames = 1

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        self.statistics: tuple[Tensor, Tensor] | None = None
        """Mean and deviation [z, 1, 1, 1] of latents that it has not normalised: LightTAE's."""
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.config.latent_channels

    @property
    def spatial_ratio(self) -> int:
        """Pixels to one latent cell, in each direction."""
        return 8 * self.config.patch

    def encode(self, video: Tensor) -> Tensor:
        """[B, frames, 3, H, W] in [0, 1] to normalised latents [B, z, F, h, w] float32.

        A latent frame depends on three frames later than those that it stands for; see above.

        Raises:
            ValueError: if the frames do not fill whole latent frames, or the picture whole cells.
        """
        batch, frames, _, height, width = video.shape
        missing = self.temporal_ratio - self.first_frames
        if (frames + missing) % self.temporal_ratio:
            raise ValueError(f"{frames} frames do not fill whole latent frames")
        if height % self.spatial_ratio or width % self.spatial_ratio:
            raise ValueError(f"{height} x {width} pixels do not fill cells of {self.spatial_ratio}")
        video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        if self.config.patch > 1:
            video = F.pixel_unshuffle(video, self.config.patch)
        z, _ = self.encoder.run(fold(video).to(self._dtype), batch, None)
        latents = z.reshape(batch, -1, *z.shape[1:]).transpose(1, 2).float()
        if self.statistics is None:
            return latents
        mean, std = (each.to(latents.device) for each in self.statistics)
        return (latents - mean) / std

    def decode(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, z, F, h, w] to frames [B, frames, 3, H, W] float32 in [0, 1]."""
        video, left = self.decode_raw(latents, state)
        return video.clamp(0, 1), left

    def decode_raw(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode for training: the result is not clamped."""
        batch = latents.shape[0]
        if self.statistics is not None:
            mean, std = (each.to(latents.device) for each in self.statistics)
            latents = latents.float() * std + mean
        x, left = self.decoder.run(fold(latents.transpose(1, 2)).to(self._dtype), batch, state)
        x = F.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x
        video = x.reshape(batch, -1, *x.shape[1:])
        missing = self.temporal_ratio - self.first_frames if state is None else 0
        return video[:, missing:].float(), left

    def stream_bytes(self, height: int, width: int) -> int:
        """Bytes of one video's decoder state for latent frames of `height` x `width` cells."""
        return self.decoder.remembered(height * width) * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
