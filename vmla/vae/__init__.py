"""Pixels to latents and back: one codec protocol, three codecs, all decoded as a stream."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor

DecoderState = Any
"""A codec's state between calls of `decode`; opaque to everyone else."""


class Codec(Protocol):
    """A causal video autoencoder that decodes latent frames as they come.

    `decode` called once on all latents and called chunk by chunk give the same frames.
    """

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""

    @property
    def spatial_ratio(self) -> int:
        """Pixels to one latent cell, in each direction: 8 in Wan2.1."""

    @property
    def temporal_ratio(self) -> int:
        """Pixel frames to one latent frame: 4 in Wan."""

    @property
    def first_frames(self) -> int:
        """Pixel frames of a video's first latent frame: 1 in Wan, whose first frame is encoded alone."""

    def to(self, device: torch.device) -> Self:
        """Move the weights; returns itself."""

    def encode(self, video: Tensor) -> Tensor:
        """[B, frames, 3, H, W] in [0, 1] to normalised latents [B, z, F, h, w]."""

    def decode(self, latents: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Normalised latents [B, z, F, h, w] to frames [B, frames, 3, H, W] in [0, 1].

        `state` comes from the previous call; None starts a new video.
        """

    def stream_bytes(self, height: int, width: int) -> int:
        """Bytes of one video's decoder state for latent frames of `height` x `width` cells."""


def frames_in(latent_frames: int, codec: Codec) -> int:
    """Pixel frames that the first `latent_frames` (1 or more) of a video decode to."""
    return codec.first_frames + (latent_frames - 1) * codec.temporal_ratio
