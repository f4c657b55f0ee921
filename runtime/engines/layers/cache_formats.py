"""Forms in which a cache can store entries: as they are, in eight bits, in four.

The shared rotary key stays in bfloat16, as in FlashMLA beside an 8-bit latent: it carries
the positions. The content is divided into groups, each with a scale of its own in float16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import gcd

import torch
from torch import Tensor

GROUP = 32
"""Numbers of the content that share a scale (for a width that it does not divide, their greatest common
divisor)."""
LEAST_SCALE = 2.0**-14
"""Least scale, the least normal number of float16: a group of zeros is divided by it."""
FP8_MOST, INT4_MOST = 448.0, 7.0
"""The largest numbers of float8_e4m3 and of a symmetric integer of four bits."""


class Format(ABC):
    """How entries [..., E] are packed for the cache, and unpacked."""

    name: str

    @abstractmethod
    def pack(self, entries: Tensor) -> tuple[Tensor, ...]:
        """Pack `entries` [..., E] into tensors [..., n], one for each part of the form."""

    @abstractmethod
    def unpack(self, packed: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The entries [..., E] that are read back."""

    def bytes_per_token(self, width: int) -> int:
        """Bytes cached for one token in one layer whose entries have `width` numbers."""
        return sum(part.numel() * part.element_size() for part in self.pack(torch.ones(width)))


class AsTheyAre(Format):
    """Entries in a floating-point type."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self._dtype = name, dtype

    def pack(self, entries: Tensor) -> tuple[Tensor, ...]:
        """The entries rounded to this type, as the one tensor of the form."""
        return (entries.to(self._dtype),)

    def unpack(self, packed: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The entries [..., E] in `dtype`."""
        return packed[0].to(dtype)


class Scaled(Format):
    """The content in codes of few bits with a scale for each group, the rotary key in bfloat16."""

    def __init__(self, name: str, *, bits: int, rotary: int) -> None:
        """`bits` is 8, for float8_e4m3, or 4, for integers; `rotary` the width of the rotary key."""
        self.name, self._bits, self._rotary = name, bits, rotary
        self._most = FP8_MOST if bits == 8 else INT4_MOST

    def pack(self, entries: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8, scales float16, rotary key bfloat16."""
        content, rotary = entries.float().split([entries.shape[-1] - self._rotary, self._rotary], dim=-1)
        groups = content.unflatten(-1, (-1, gcd(content.shape[-1], GROUP)))
        scales = (groups.abs().amax(-1, keepdim=True) / self._most).clamp(min=LEAST_SCALE).half()
        # Divided by the scale as it is stored, rounded to float16: the one that `unpack` multiplies by.
        codes = (groups / scales.float()).clamp(-self._most, self._most).flatten(-2)
        values = _fp8(codes) if self._bits == 8 else _nibbles(codes)
        return values, scales.squeeze(-1), rotary.bfloat16()

    def unpack(self, packed: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Codes times scales, beside the rotary key."""
        codes, scales, rotary = packed
        numbers = codes.view(torch.float8_e4m3fn).float() if self._bits == 8 else _numbers(codes)
        content = numbers.unflatten(-1, (scales.shape[-1], -1)) * scales.float()[..., None]
        return torch.cat([content.flatten(-2), rotary.float()], dim=-1).to(dtype)


def _fp8(codes: Tensor) -> Tensor:
    """float8 codes as bytes: not every device can index a float8 tensor."""
    return codes.to(torch.float8_e4m3fn).view(torch.uint8)


def _nibbles(codes: Tensor) -> Tensor:
    """Two integers of -7 to 7 in a byte: the even ones low."""
    whole = (codes.round() + 8).to(torch.uint8)
    return whole[..., ::2] | whole[..., 1::2] << 4


def _numbers(codes: Tensor) -> Tensor:
    """Undo `_nibbles`: the integers in their order."""
    return torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).float() - 8
