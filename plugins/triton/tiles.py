"""How much work one program of a kernel does, by operator and architecture; pure values, no Triton.

`fast` is meant for speed, `compact` stays within the 48 KiB of shared memory that a launch gets
without asking the driver for more. On Hopper the fast tiles of both attentions are the fastest, in
bfloat16 on an H200, of those that spill no register (LOG.md, 2026-11-27); all others are the largest
that spill none, as `python -m plugins.aot.compile` reports, and were never tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["fast", "compact"]
Operator = Literal["expand", "mla_attention", "mla_attention_absorbed"]
Family = Literal[90, 100, 120]
FAMILIES: tuple[Family, ...] = (90, 100, 120)
SHARED_MEMORY: dict[Family, int] = {90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that one program may use (CUDA programming guide, compute capabilities)."""
COMPACT_MEMORY = 48 << 10
"""Bytes that a program gets without raising the function's limit (cudaFuncSetAttribute)."""

LOG2_E = 1.4426950408889634
"""log2(e), multiplied into the scale: GPUs have an instruction for 2^x, and none for e^x
(FlashAttention-2)."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows and columns of one program; `num_warps` and `num_stages` are Triton's own options of that name."""

    rows: int
    columns: int = 0
    """Keys per step; 0 where a kernel has no loop over keys."""
    num_warps: int
    num_stages: int


FAST: dict[Operator, dict[Family, Tile]] = {
    "expand": {
        90: Tile(rows=128, num_warps=8, num_stages=1),
        100: Tile(rows=128, num_warps=8, num_stages=1),
        120: Tile(rows=64, num_warps=8, num_stages=1),
    },
    "mla_attention": {
        90: Tile(rows=128, columns=64, num_warps=8, num_stages=3),
        100: Tile(rows=128, columns=128, num_warps=8, num_stages=2),
        120: Tile(rows=64, columns=64, num_warps=8, num_stages=2),
    },
    "mla_attention_absorbed": {
        90: Tile(rows=128, columns=32, num_warps=8, num_stages=3),
        100: Tile(rows=128, columns=64, num_warps=8, num_stages=2),
        120: Tile(rows=32, columns=32, num_warps=4, num_stages=2),
    },
}
COMPACT: dict[Operator, dict[Family, Tile]] = {
    "expand": dict.fromkeys(FAMILIES, Tile(rows=64, num_warps=8, num_stages=1)),
    "mla_attention": {
        90: Tile(rows=64, columns=32, num_warps=4, num_stages=1),
        100: Tile(rows=64, columns=32, num_warps=4, num_stages=1),
        120: Tile(rows=32, columns=32, num_warps=4, num_stages=1),
    },
    "mla_attention_absorbed": {
        90: Tile(rows=64, columns=32, num_warps=4, num_stages=1),
        100: Tile(rows=64, columns=32, num_warps=4, num_stages=1),
        120: Tile(rows=32, columns=32, num_warps=4, num_stages=1),
    },
}


def family(capability: int) -> Family:
    """The architecture whose tiles a GPU uses: Hopper, data-centre Blackwell or consumer Blackwell."""
    return 120 if capability >= 120 else 100 if capability >= 100 else 90


def tile(operator: Operator, *, capability: int, size: Size = "fast") -> Tile:
    """The tile of an operator for a compute capability such as 90."""
    return (FAST if size == "fast" else COMPACT)[operator][family(capability)]


def power_of_two(width: int, *, least: int = 16) -> int:
    """The smallest power of two that is at least `width` and `least`."""
    return max(1 << (width - 1).bit_length(), least)


def rotary_pairs(width: int, element_size: int) -> int:
    """Pairs of a rotary key, padded to the 16 channels that a product needs, or 32 of one byte each."""
    return power_of_two(width // 2, least=16 // element_size)


def divisor(width: int) -> int:
    """The largest power of two up to 64 that divides `width`: how much of C the expansion reads at once."""
    return min(width & -width, 64)


def halves(width: int) -> tuple[int, int] | None:
    """`width` as a sum of two powers of two of at least 16 (192 is 128 + 64), or of one and 0; else None."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    good = first >= 16 and (rest == 0 or (rest >= 16 and rest & (rest - 1) == 0))
    return (first, rest) if good else None
