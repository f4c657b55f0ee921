"""The product of float8 codes with a scale for each row of both factors, and its plain reference.

`torch._scaled_mm` computes it on GPUs from Ada (sm_89) on, and on a CPU, where it is exact but slow. On a GPU
both widths divide by 16, and the result and the bias are bfloat16: PyTorch has no other row-wise product.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAST_ACCUMULATION = True
"""Whether a GPU accumulates inside its tensor cores, with fewer bits than float32; the same wherever products
are run or timed. We expect its error to be far below the rounding of the codes; the measurement `fp8` of
`vmla-bench gpu` compares speed and error of both at the model's sizes."""
WIDTHS = 16
"""Both widths of a layer must be multiples of this."""
OLDEST_GPU = (8, 9)
"""Compute capability from which GPUs multiply float8 codes."""


def scaled_product(
    codes: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None,
    *, dtype: torch.dtype = torch.bfloat16, fast: bool = FAST_ACCUMULATION,
) -> Tensor:  # fmt: skip
    """codes [M, K] times weight [N, K] transposed.

    Args:
        codes, weight: float8_e4m3fn.
        scales: [M, 1] float32, of the rows of `codes`.
        weight_scales: [N] float32, of the rows of `weight`.
        bias: [N] in `dtype`.
        dtype: of the result; a GPU has bfloat16 alone.
        fast: whether a GPU may accumulate with fewer bits; without effect on a CPU.

    Returns:
        [M, N] in `dtype`.
    """
    return torch.ops.aten._scaled_mm.default(
        codes, weight.t(), scales, weight_scales[None], bias, out_dtype=dtype, use_fast_accum=fast
    )


def reference_product(
    codes: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None,
    *, dtype: torch.dtype = torch.bfloat16,
) -> Tensor:  # fmt: skip
    """The reference of `scaled_product`: the codes' values, multiplied in float32 and rounded once."""
    made = (codes.float() * scales) @ (weight.float() * weight_scales[:, None]).t()
    return (made if bias is None else made + bias.float()).to(dtype)
