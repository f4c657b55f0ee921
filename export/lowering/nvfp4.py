"""nvfp4: e2m1 codes, an e4m3 scale for each 16 along a row, and one scale for the whole tensor.

A code c in block b of tensor t has the value  s_t s_b c. With s_t = max|t| / (6 * 448), rounded
up to a power of two (see `export.lowering.fp8`), and s_b = max|b| / (6 s_t) in e4m3, the largest
element of each block has the largest code, 6. Only tensor cores of Blackwell GPUs multiply such codes.

Weights are stored as codes. Of inputs only s_t is known beforehand; their block scales are computed as they
are read, by TensorRT's node TRT_FP4DynamicQuantize, which `round_to` implements in PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.lowering.fp8 import input_scale
from export.lowering.fp8 import quantize as quantize_e4m3

BLOCK = 16
"""Elements of a row that share a scale, as Blackwell's tensor cores have it."""
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; those of 8 to 15 are their negatives."""

_BELOW_EVEN = {1, 3, 5}
"""Codes whose upper neighbour is even; ties are rounded to it."""

_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define("nvfp4_round(Tensor x, float scale) -> Tensor")
_LIBRARY.define("nvfp4_dequantize(Tensor codes, Tensor scales, float scale) -> Tensor")

ROUND = torch.ops.vmla.nvfp4_round.default
DEQUANTIZE = torch.ops.vmla.nvfp4_dequantize.default


def tensor_scale(largest: float) -> float:
    """s_t of a tensor whose largest magnitude is `largest`."""
    return input_scale(largest / VALUES[-1])


def quantize(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Codes and block scales of float32 `x` [..., n] under the tensor scale `scale`.

    Returns:
        [..., n / 2] float4_e2m1fn_x2, the earlier of two codes in the lower half, and [..., n / 16]
        float8_e4m3fn.
    """
    codes, scales = _codes(x, scale)
    low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return (low | high << 4).view(torch.float4_e2m1fn_x2), scales


def dequantize(codes: Tensor, scales: Tensor, scale: float) -> Tensor:
    """The values of the results of `quantize` in float32; bfloat16 would hold them exactly too."""
    both = codes.view(torch.uint8)
    return _values(torch.stack([both & 15, both >> 4], dim=-1).flatten(-2), scales, scale)


def round_to(x: Tensor, scale: float) -> Tensor:
    """`x` [..., n] with every element rounded to the value of its code."""
    return _values(*_codes(x, scale), scale)


def _codes(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Codes [..., n] uint8, not packed in pairs, and block scales."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    scales = quantize_e4m3(blocks.abs().amax(dim=-1) / VALUES[-1], scale)
    unit = scales.float()[..., None] * scale
    scaled = torch.where(unit > 0, blocks / unit, 0.0)  # a block too small for its scale becomes zeros
    codes = torch.bucketize(scaled.abs(), _boundaries(x.device)).to(torch.uint8)
    return (codes | (scaled < 0).to(torch.uint8) << 3).flatten(-2), scales


def _values(codes: Tensor, scales: Tensor, scale: float) -> Tensor:
    table = torch.tensor([*VALUES, *(-value for value in VALUES)], device=codes.device)
    blocks = table[codes.int()].unflatten(-1, (-1, BLOCK))
    return (blocks * (scales.float()[..., None] * scale)).flatten(-2)


def _boundaries(device: torch.device) -> Tensor:
    """Between each code and the next, [7]: a number on a boundary goes down, so those going up lie lower."""
    # Ties go to the even code, as hardware rounds: bucketize puts a number on a boundary below it.
    middles = torch.tensor([(a + b) / 2 for a, b in zip(VALUES, VALUES[1:], strict=False)])
    lower = torch.nextafter(middles, torch.zeros(()))
    up = torch.tensor([code in _BELOW_EVEN for code in range(len(middles))])
    return torch.where(up, lower, middles).to(device)


_LIBRARY.impl("nvfp4_round", round_to, "CompositeImplicitAutograd")
_LIBRARY.impl("nvfp4_dequantize", dequantize, "CompositeImplicitAutograd")
