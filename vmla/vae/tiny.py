"""A tiny causal autoencoder of 2-D convolutions, each block remembering one frame of features.

The design is that of TAEHV (github.com/madebyollin/taehv): time is folded into the batch for
every convolution, and the only way from one frame to the next is a block that sees its own input
of the frame before. So a stream needs to remember one small tensor for each block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmla.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TinyCodecConfig:
    """Sizes of a `TinyCodec`."""

    latent_channels: int = 16
    widths: tuple[int, int, int] = (96, 64, 32)
    """Channels at 1/8, 1/4 and 1/2 of the picture's size."""
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    """Memory blocks at those sizes."""
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


class MemoryBlock(nn.Module):
    """Residual convolutions over a frame's features beside those of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x, before [n, width, h, w]: each frame and its predecessor."""
        h = F.relu(self.mix(torch.cat([x, before], dim=1)))
        return F.relu(x + self.out(F.relu(self.inner(h))))


class TimePool(nn.Module):
    """Two frames to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [2 n, width, h, w], time in pairs."""
        return self.conv(x.reshape(x.shape[0] // 2, -1, *x.shape[2:]))


class TimeGrow(nn.Module):
    """One frame to two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width, h, w] to [2 n, width, h, w]."""
        return self.conv(x).reshape(2 * x.shape[0], *x.shape[1:])


class _Stream(nn.Sequential):
    """Layers over frames folded into the batch; memory blocks carry their last input along."""

    def run(self, x: Tensor, batch: int, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """x [batch * frames, ...], batch-major; returns the result and the memory for the next call."""
        left: list[Tensor] = []
        for layer in self:
            if isinstance(layer, MemoryBlock):
                frames = x.reshape(batch, -1, *x.shape[1:])
                first = torch.zeros_like(frames[:, :1]) if memory is None else memory[len(left)]
                before = torch.cat([first, frames[:, :-1]], dim=1)
                left.append(frames[:, -1:].clone())  # a view would keep all frames in memory
                x = layer(x, before.reshape(x.shape))
            else:
                x = layer(x)
        return x, left


def _encoder(config: TinyCodecConfig) -> _Stream:
    wide, middle, narrow = config.widths
    at_8, at_4, at_2 = config.encoder_blocks
    return _Stream(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, narrow, 3, padding=1),
        *(MemoryBlock(narrow) for _ in range(at_2)),
        TimePool(narrow),
        nn.Conv2d(narrow, middle, 3, stride=2, padding=1),
        *(MemoryBlock(middle) for _ in range(at_4)),
        TimePool(middle),
        nn.Conv2d(middle, wide, 3, stride=2, padding=1),
        *(MemoryBlock(wide) for _ in range(at_8)),
        nn.Conv2d(wide, config.latent_channels, 3, padding=1),
    )


def _decoder(config: TinyCodecConfig) -> _Stream:
    wide, middle, narrow = config.widths
    at_8, at_4, at_2 = config.decoder_blocks
    return _Stream(
        nn.Conv2d(config.latent_channels, wide, 3, padding=1),
        nn.ReLU(),
        *(MemoryBlock(wide) for _ in range(at_8)),
        nn.Conv2d(wide, 4 * middle, 1),
        nn.PixelShuffle(2),
        TimeGrow(middle),
        *(MemoryBlock(middle) for _ in range(at_4)),
        nn.Conv2d(middle, 4 * narrow, 1),
        nn.PixelShuffle(2),
        TimeGrow(narrow),
        *(MemoryBlock(narrow) for _ in range(at_2)),
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
        """As `encode`, before the normalisation.

        Raises:
            ValueError: if the frames do not fill whole latent frames.
        """
        missing = self.temporal_ratio - self.first_frames
        if (video.shape[1] + missing) % self.temporal_ratio:
            raise ValueError(f"{video.shape[1]} frames do not fill whole latent frames")
        video = torch.cat([video[:, :1].expand(-1, missing, -1, -1, -1), video], dim=1)
        batch = video.shape[0]
        frames = _fold(2 * video - 1).to(self._dtype)
        z, _ = self.encoder.run(frames, batch, None)
        return z.reshape(batch, -1, *z.shape[1:]).transpose(1, 2)

    def decode(self, latents: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, z, F, h, w] to frames [B, frames, 3, H, W] in [0, 1]."""
        video, left = self.decode_raw(latents.float() * self.std + self.mean, memory)
        return video.float().clamp(0, 1), left

    def decode_raw(self, latents: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """As `decode`, of latents as `encode_raw` gives them, before the result is clamped: for training."""
        batch = latents.shape[0]
        # Bounds what a denoiser may hand over, smoothly: raw latents are trained to have deviation 1.
        bounded = torch.tanh(latents.float() / 3) * 3
        x, left = self.decoder.run(_fold(bounded.transpose(1, 2)).to(self._dtype), batch, memory)
        video = x.reshape(batch, -1, *x.shape[1:]) / 2 + 0.5
        missing = self.temporal_ratio - self.first_frames if memory is None else 0
        return video[:, missing:], left

    def stream_bytes(self, height: int, width: int) -> int:
        """Bytes that one video's memory holds for latent frames of `height` x `width` cells."""
        cells, remembered = height * width, 0
        for layer in self.decoder:
            if isinstance(layer, nn.PixelShuffle):
                cells *= layer.upscale_factor**2
            if isinstance(layer, MemoryBlock):
                remembered += layer.out.out_channels * cells
        return remembered * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _fold(video: Tensor) -> Tensor:
    """[B, frames, c, H, W] to channels-last [B * frames, c, H, W]."""
    return video.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]
