"""Decodes latents to frames during a rollout, by the checkpoint's codec, by one in a file, or not at all."""

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
from vmla.weights.taehv import architecture_of, is_light, load_taehv, scaled_if_light

NOTHING = Path("none")
"""Value of `--decoder` that makes no frames."""


class Decoder(Protocol):
    """Turns the chunks of one batch of videos into frames, in order."""

    state: DecoderState | None
    """Its state between chunks: all that another decoder needs to continue the video."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""


class CodecDecoder:
    """Decodes with a codec, as a stream."""

    def __init__(self, codec: Codec, device: torch.device, threads: int | None = None) -> None:
        """Move `codec` to `device`; it decodes with `threads` CPU threads, PyTorch's own number if None."""
        self._codec, self._threads = codec.to(device), threads
        self.state: DecoderState | None = None

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] of the next chunk to frames [B, frames, 3, H, W] in [0, 1]."""
        with using(self._threads):
            frames, self.state = self._codec.decode(latents, self.state)
        return frames


class NoDecoder:
    """Returns the latents undecoded, for measurements and for decoding elsewhere."""

    state: DecoderState | None = None

    def decode(self, latents: Tensor) -> Tensor:
        """The latents [B, z, F, h, w] with time first: [B, F, z, h, w]."""
        return latents.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The codec that will decode a checkpoint's latents, known before any of it is loaded."""

    checkpoint: Checkpoint
    file: Path | None
    """Weights of TAEHV's architecture, or `NOTHING`; None is the checkpoint's own codec."""
    dtype: torch.dtype
    """The type that a file's codec computes in; the checkpoint's own always computes in float32."""

    @property
    def silent(self) -> bool:
        """Whether no frames are made."""
        return self.file == NOTHING

    def sizes(self) -> Codec:
        """The codec without its weights; where no frames are made the checkpoint's, which gives their number.

        Raises:
            UserError: if a file's tensors are wrong, or its latents are not the checkpoint's.
        """
        if self.file is None or self.silent:
            return self.checkpoint.codec(weights=False)
        codec, own = load_taehv(self.file, weights=False), self.checkpoint.codec(weights=False)
        made = self.checkpoint.model_config().in_channels
        if codec.latent_channels != made:
            raise UserError(
                f"{self.file} decodes latents of {codec.latent_channels} channels, checkpoint "
                f"{self.checkpoint.folder} makes {made}; name a decoder for these"
            )
        return scaled_if_light(codec, self.file, own).to(self.dtype)

    def decoders(self, device: torch.device, threads: int | None = None) -> Callable[[], Decoder]:
        """Load the codec. Each call of the result returns a decoder for a new video."""
        if self.silent:
            return NoDecoder
        if self.file is None:
            return partial(CodecDecoder, self.checkpoint.codec(), device, threads)
        codec = scaled_if_light(load_taehv(self.file), self.file, self.checkpoint.codec(weights=False))
        return partial(CodecDecoder, codec.to(self.dtype), device, threads)

    def codec_bytes(self) -> int:
        """Bytes of the codec's weights; only file headers are read."""
        if self.silent:
            return 0
        if self.file is None:
            return self.checkpoint.elements("vae") * torch.float32.itemsize
        codec = self.sizes()
        assert isinstance(codec, nn.Module)
        return sum(parameter.nbytes for parameter in codec.parameters())

    def describe(self) -> dict[str, Any]:
        """The codec as JSON values; hashes its file, if it has one."""
        if self.file is None or self.silent:
            name = "own" if self.file is None else str(NOTHING)
            return {"decoder": name, "decoder_file": self.file and str(self.file), "decoder_hash": None}
        name, place = architecture_of(load_taehv(self.file, weights=False)), self.file.resolve()
        name = f"light {name}" if is_light(self.file) else name
        return {"decoder": name, "decoder_file": str(place), "decoder_hash": hash_file(place)}

    def line(self) -> str:
        """The codec, for a person to read."""
        if self.silent:
            return "decoder: none (no frames are made)"
        light = self.file is not None and is_light(self.file)
        return f"decoder: {self.file or 'own'}{' (LightTAE: latents are scaled first)' if light else ''}"
