"""Latents to frames inside the rollout, by the checkpoint's codec or a file's, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from runtime.device.threads import using
from vmla.vae import Codec, DecoderState
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.formats.files import hash_file
from vmla.weights.taehv import load_taehv, preset_of

NOTHING = Path("none")
"""Asked for as a decoder: no frames."""


class Decoder(Protocol):
    """Turns the chunks of one batch of videos into frames, in order."""

    state: DecoderState | None
    """What it remembers of the video so far: all that a later decoder needs to go on."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""


class CodecDecoder:
    """A codec and what it remembers of the video so far."""

    def __init__(self, codec: Codec, device: torch.device, threads: int | None = None) -> None:
        """`threads` of the CPU decode; None leaves PyTorch's own number."""
        self._codec, self._threads = codec.to(device), threads
        self.state: DecoderState | None = None

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""
        with using(self._threads):
            frames, self.state = self._codec.decode(latents, self.state)
        return frames


class NoDecoder:
    """Hands the latents on as they are, for measuring and for decoding elsewhere."""

    state: DecoderState | None = None

    def decode(self, latents: Tensor) -> Tensor:
        """The latents [B, z, F, h, w] with time first: [B, F, z, h, w]."""
        return latents.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What makes frames of a checkpoint's latents."""

    checkpoint: Checkpoint
    file: Path | None
    """Weights of TAEHV's architecture, or `NOTHING`; None is the checkpoint's own codec."""
    dtype: torch.dtype
    """What a file's codec computes in; the checkpoint's own always does in float32."""

    @property
    def silent(self) -> bool:
        """Whether no frames are made."""
        return self.file == NOTHING

    def sizes(self) -> Codec:
        """The codec without its weights; without frames, the one that says how long the video would be.

        Raises:
            UserError: if a file's tensors are wrong, or its latents are not the checkpoint's.
        """
        if self.file is None or self.silent:
            return self.checkpoint.codec(weights=False)
        codec, made = load_taehv(self.file, weights=False), self.checkpoint.model_config().in_channels
        if codec.latent_channels != made:
            raise UserError(
                f"{self.file} decodes latents of {codec.latent_channels} channels, checkpoint "
                f"{self.checkpoint.folder} makes {made}; name a decoder for these"
            )
        return codec.to(self.dtype)

    def decoders(self, device: torch.device, threads: int | None = None) -> Callable[[], Decoder]:
        """Load what decodes, with `threads` of the CPU; every call of the result begins a video with it."""
        if self.silent:
            return NoDecoder
        if self.file is None:
            return partial(CodecDecoder, self.checkpoint.codec(), device, threads)
        return partial(CodecDecoder, load_taehv(self.file).to(self.dtype), device, threads)

    def codec_bytes(self) -> int:
        """Bytes of the weights; only headers are read."""
        if self.silent:
            return 0
        if self.file is None:
            return self.checkpoint.elements("vae") * torch.float32.itemsize
        codec = self.sizes()
        assert isinstance(codec, nn.Module)
        return sum(parameter.nbytes for parameter in codec.parameters())

    def describe(self) -> dict[str, Any]:
        """What decodes, as JSON values; reads a file whole."""
        if self.file is None or self.silent:
            name = "own" if self.file is None else str(NOTHING)
            return {"decoder": name, "decoder_file": self.file and str(self.file), "decoder_hash": None}
        preset, place = preset_of(load_taehv(self.file, weights=False)), self.file.resolve()
        return {"decoder": preset, "decoder_file": str(place), "decoder_hash": hash_file(place)}

    def line(self) -> str:
        """What decodes, for a person to read."""
        return f"decoder: {self.file or 'own'}{' (no frames are made)' if self.silent else ''}"
