"""fp8: e4m3 codes with scales, as operators that stay nodes in a program's graph.

Which layers run in fp8, and why the others do not, is said in `export.lowering.exclusions`.

A layer W x + b becomes  s_w s_x (W / s_w)_8 (x / s_x)_8 + b, where (.)_8 rounds to float8_e4m3fn and
saturates at 448. Inputs have one scale per tensor, from the calibration; weights have one per output channel,
from the weights. In the graph this is quantise, dequantise, linear. TensorRT fuses it into one product of
codes, ONNX Runtime runs it step by step, and `export.lowering.fp8_matmul` turns it into PyTorch's own product
of codes.

Scales are powers of two. In a floating-point format that costs no precision, only range; on the shipped model
no difference from the exact maximum was measured. In return, dividing by a scale is exact and every scale is
exact in float32, bfloat16 and float16, so every backend produces the same codes.

The scale of an input is a number in the graph. A program that several layers share
(`export.lowering.regional`) has the scales of none of them, so there it is a tensor [] float32: the overloads
`Tensor` take one and compute the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""The largest number of float8_e4m3fn, 448."""

_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define("quantize(Tensor x, float scale) -> Tensor")
_LIBRARY.define("quantize.Tensor(Tensor x, Tensor scale) -> Tensor")
_LIBRARY.define("dequantize(Tensor codes, float scale, ScalarType dtype) -> Tensor")
_LIBRARY.define("dequantize.Tensor(Tensor codes, Tensor scale, ScalarType dtype) -> Tensor")
_LIBRARY.define("dequantize_rows(Tensor codes, Tensor scales) -> Tensor")

QUANTIZE, QUANTIZE_BY = torch.ops.vmla.quantize.default, torch.ops.vmla.quantize.Tensor
DEQUANTIZE, DEQUANTIZE_BY = torch.ops.vmla.dequantize.default, torch.ops.vmla.dequantize.Tensor
DEQUANTIZE_ROWS = torch.ops.vmla.dequantize_rows.default


def quantize(x: Tensor, scale: float | Tensor) -> Tensor:
    """The float8_e4m3fn codes of x / scale, rounded to nearest even and saturated at 448."""
    # PyTorch's cast of values beyond 448 depends on version and device, so they are clamped first.
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def dequantize(codes: Tensor, scale: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The values of `codes` in `dtype`."""
    return codes.to(dtype) * scale


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The values of `codes` [out, in] with `scales` [out], in the dtype of the scales."""
    return codes.to(scales.dtype) * scales[:, None]


# Compositions, as in `plugins.operator`: nodes in a traced graph, transparent to a compiler.
for _name, _composition in (
    ("quantize", quantize),
    ("quantize.Tensor", quantize),
    ("dequantize", dequantize),
    ("dequantize.Tensor", dequantize),
    ("dequantize_rows", dequantize_rows),
):
    _LIBRARY.impl(_name, _composition, "CompositeImplicitAutograd")


def input_scale(largest: float) -> float:
    """The smallest power of two by which inputs up to `largest` divide into range; 1 for zeros."""
    part, exponent = math.frexp(largest / LARGEST)  # part * 2^exponent with 1/2 <= part < 1
    return math.ldexp(1.0, exponent - (part == 0.5))


def row_scales(weight: Tensor) -> Tensor:
    """`input_scale` of each row of `weight` [out, in]: [out] float32."""
    part, exponent = torch.frexp(weight.abs().amax(dim=1).float() / LARGEST)
    return torch.ldexp(torch.ones_like(part), exponent - (part == 0.5).int())
