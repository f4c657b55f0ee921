"""A tiny causal autoencoder of 2-D convolutions, each block remembering one frame of features.

The design is that of TAEHV (github.com/madebyollin/taehv) in our own sizes; `vmla.vae.taehv` has TAEHV's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.errors import UserError
from vmla.vae.stream import FrameStream, PreviousFrameLayer, TimeGrow, TimePool, fold

MOST = 2**12
"""Upper bound of channels and of blocks: a damaged file must not ask for more."""


@dataclass(frozen=True, kw_only=True)
class TinyCodecConfig:
    """Sizes of a `TinyCodec`, and the statistics of its latents."""

    latent_channels: int = 16
    widths: tuple[int, int, int] = (96, 64, 32)
    """Channels at 1/8, 1/4 and 1/2 of the picture's size."""
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    """Residual blocks at those sizes."""
    decoder_blocks: tuple[int, int, int] = (3, 2, 1)
    first_frames: int = 4
    """Pixel frames of the very first latent frame: 4, or 1 as in Wan."""
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    """Per channel, of the encoder's raw output; empty means 0 and 1."""

    def __post_init__(self) -> None:
        per_channel = (0, self.latent_channels)
        lengths = {"widths": (3,), "encoder_blocks": (3,), "decoder_blocks": (3,)}
        for name, allowed in {**lengths, "latents_mean": per_channel, "latents_std": per_channel}.items():
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) not in allowed:
                raise UserError(f"{name} is {value!r}; it is {' or '.join(map(str, allowed))} numbers")
        counts = (self.latent_channels, *self.widths, *self.encoder_blocks, *self.decoder_blocks)
        if not all(0 <= count <= MOST for count in counts) or 0 in (self.latent_channels, *self.widths):
            raise UserError(f"widths and numbers of blocks are {counts}; they are at most {MOST}")
        if not 1 <= self.first_frames <= 4:
            raise UserError(f"first_frames is {self.first_frames}; it is 1 to 4")


class TemporalResBlock(PreviousFrameLayer):
    """Residual convolutions over a frame's features beside those of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x, before [n, width, h, w]: each frame and its predecessor."""
        h = F.relu(self.mix(torch.cat([x, before], dim=1)))
        return F.relu(x + self.out(F.relu(self.inner(h))))


def _encoder(config: TinyCodecConfig) -> FrameStream:
    wide, middle, narrow = config.widths
    at_8, at_4, at_2 = config.encoder_blocks
    return FrameStream(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, narrow, 3, padding=1),
        *(TemporalResBlock(narrow) for _ in range(at_2)),
        TimePool(narrow),
        nn.Conv2d(narrow, middle, 3, stride=2, padding=1),
        *(TemporalResBlock(middle) for _ in range(at_4)),
        TimePool(middle),
        nn.Conv2d(middle, wide, 3, stride=2, padding=1),
        *(TemporalResBlock(wide) for _ in range(at_8)),
        nn.Conv2d(wide, config.latent_channels, 3, padding=1),
    )


def _decoder(config: TinyCodecConfig) -> FrameStream:
    wide, middle, narrow = config.widths
    at_8, at_4, at_2 = config.decoder_blocks
    return FrameStream(
        nn.Conv2d(config.latent_channels, wide, 3, padding=1),
        nn.ReLU(),
        *(TemporalResBlock(wide) for _ in range(at_8)),
        nn.Conv2d(wide, 4 * middle, 1),
        nn.PixelShuffle(2),
        TimeGrow(middle),
        *(TemporalResBlock(middle) for _ in range(at_4)),
        nn.Conv2d(middle, 4 * narrow, 1),
        nn.PixelShuffle(2),
        TimeGrow(narrow),
        *(TemporalResBlock(narrow) for _ in range(at_2)),
        nn.Conv2d(narrow, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


class TinyCodec(nn.Module):
    """The small model's autoencoder, and a fast decoder for larger ones: a `vmla.vae.Codec`."""

    mean: Tensor
    std: Tensor
    spatial_ratio = 8
    temporal_ratio = 4

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        channels = config.latent_channels
        self.register_buffer("mean", _per_channel(config.latents_mean or (0.0,) * channels), persistent=False)
        self.register_buffer("std", _per_channel(config.latents_std or (1.0,) * channels), persistent=False)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.config.latent_channels

    @property
    def first_frames(self) -> int:
        """Pixel frames of the very first latent frame."""
        return self.config.first_frames

    def encode(self, video: Tensor) -> Tensor:
        """[B, frames, 3, H, W] in [0, 1] to normalised latents [B, z, F, h, w]."""
        return (self.encode_raw(video) - self.mean) / self.std

    def encode_raw(self, video: Tensor) -> Tensor:
        """Encode without normalising the latents.

        Raises:
            ValueError: if the frames do not fill whole latent frames.
        """
        missing = self.temporal_ratio - self.first_frames
        if (video.shape[1] + missing) % self.temporal_ratio:
            raise ValueError(f"{video.shape[1]} frames do not fill whole latent frames")
        video = torch.cat([video[:, :1].expand(-1, missing, -1, -1, -1), video], dim=1)
        batch = video.shape[0]
        frames = fold(2 * video - 1).to(self._dtype)
        z, _ = self.encoder.run(frames, batch, None)
        return z.reshape(batch, -1, *z.shape[1:]).transpose(1, 2)

    def decode(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, z, F, h, w] to frames [B, frames, 3, H, W] in [0, 1]."""
        video, left = self.decode_raw(latents.float() * self.std + self.mean, state)
        return video.float().clamp(0, 1), left

    def decode_raw(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode the latents of `encode_raw`, and do not clamp the result: for training."""
        batch = latents.shape[0]
        # Bounds a denoiser's outliers, smoothly: raw latents are trained to have deviation 1.
        bounded = torch.tanh(latents.float() / 3) * 3
        x, left = self.decoder.run(fold(bounded.transpose(1, 2)).to(self._dtype), batch, state)
        video = x.reshape(batch, -1, *x.shape[1:]) / 2 + 0.5
        missing = self.temporal_ratio - self.first_frames if state is None else 0
        return video[:, missing:], left

    def stream_bytes(self, height: int, width: int) -> int:
        """Bytes of one video's decoder state for latent frames of `height` x `width` cells."""
        return self.decoder.remembered(height * width) * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]
