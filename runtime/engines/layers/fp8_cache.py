"""A cache of entries in float8, for the eager model and its compiled blocks.

An entry's bytes lie side by side: codes of the content, a float16 scale for each group of it, the rotary key
in bfloat16 (`runtime.engines.layers.cache_formats`). So the cache is one tensor of bytes, which rollouts,
graphs and states move about like any other, and each layer unpacks its own part when it reads it: no more
than one layer's window is ever there in the model's type. A chunk attends to its own entries unpacked.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from runtime.engines.layers.cache_formats import GROUP, Scaled
from vmla.attention import AnyWindow, LatentAttention
from vmla.config import ModelConfig
from vmla.fused_attention import JoinedAttention, replaced


class PackedEntries:
    """Packs entries [..., E] of a model into bytes [..., width], and unpacks them."""

    def __init__(self, config: ModelConfig) -> None:
        content, rotary = config.kv_lora_rank, config.qk_rope_head_dim
        self._form = Scaled("fp8", bits=8, rotary=rotary)
        self._sizes = [content, 2 * content // gcd(content, GROUP), 2 * rotary]
        self.width = sum(self._sizes)
        """Bytes of one token in one layer."""

    def pack(self, entries: Tensor) -> Tensor:
        """The bytes of `entries`, uint8."""
        parts = self._form.pack(entries)
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries [..., E] that the bytes `packed` [..., width] stand for, in `dtype`."""
        codes, scales, rotary = (part.contiguous() for part in packed.split(self._sizes, dim=-1))
        parts = codes, scales.view(torch.float16), rotary.view(torch.bfloat16)
        return self._form.unpack(parts, dtype)


class UnpackingAttention(nn.Module):
    """Latent attention over packed cached entries, which it unpacks first."""

    def __init__(self, attention: nn.Module, form: PackedEntries, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention, self._form, self._dtype = attention, form, dtype

    def entries(self, x: Tensor) -> Tensor:
        """See `LatentAttention.entries`; the entries are not packed yet."""
        made: Tensor = cast(LatentAttention, self.attention).entries(x)
        return made

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `LatentAttention.forward`; cached [B, T, width] is packed, and the new entries are not."""
        unpacked = self._form.unpack(cached, self._dtype)
        made: tuple[Tensor, Tensor] = self.attention(x, unpacked, window, absorbed=absorbed)
        return made


def unpacking(module: nn.Module, form: PackedEntries, dtype: torch.dtype) -> nn.Module:
    """A shallow copy of `module`, sharing all else, whose latent attention reads packed entries."""

    def replace(_: str, part: nn.Module) -> nn.Module | None:
        attends = isinstance(part, LatentAttention | JoinedAttention)
        return UnpackingAttention(part, form, dtype) if attends else None

    return replaced(module, replace)


def choose_fp8_cache(wish: str | None, config: ModelConfig, engine: Path | None) -> bool:
    """Whether entries are cached in float8.

    Raises:
        UserError: for an engine, or a model without latents.
    """
    if wish is None:
        return False
    if engine is not None:
        raise UserError(
            f"{engine} reads its cache as it was built to; leave out --cache, or say --engine eager"
        )
    if config.layout != "mla":
        raise UserError(f"--cache fp8 is for latents, which layout {config.layout} has none of; leave it out")
    return True
