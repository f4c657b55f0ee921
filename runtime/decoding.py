"""Latents to frames inside the rollout, or not at all."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vmla.vae import Codec, Memory


class Decoder(Protocol):
    """Turns the chunks of one batch of videos into frames, in order."""

    memory: Memory | None
    """What it remembers of the video so far: all that a later decoder needs to go on."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""


class CodecDecoder:
    """A codec and what it remembers of the video so far."""

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self._codec = codec.to(device)
        self.memory: Memory | None = None

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""
        frames, self.memory = self._codec.decode(latents, self.memory)
        return frames


class NoDecoder:
    """Hands the latents on as they are, for measuring and for decoding elsewhere."""

    memory: Memory | None = None

    def decode(self, latents: Tensor) -> Tensor:
        """The latents [B, z, F, h, w] with time first: [B, F, z, h, w]."""
        return latents.transpose(1, 2)
