"""Attention to all keys from float8 codes with one scale for each tensor, and its plain reference.

Queries, keys and values become float8_e4m3fn codes. The weights of the softmax become codes too, with a fixed
scale: relative to the largest of their row they lie in (0, 1], so 448 times them uses the type's whole range.
The output is a mean of the values, which is why codes with the values' own scale hold it.

Quantising is plain PyTorch, which a compiler fuses with what makes the tensors. What attends to the codes is
given as a function, `plugins.fp8.cudnn_attention.attend` or the reference of the same signature here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plugins.fp8.rows import LARGEST, LEAST_SCALE

SOFTMAX_SCALE = LARGEST
"""What a weight of the softmax is multiplied by before it is rounded; the largest weight of a row is 1."""

AttendToCodes = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""See `reference_attend`."""


def fp8_attention(query: Tensor, keys: Tensor, values: Tensor, attend: AttendToCodes) -> Tensor:
    """As `plugins.dense_attention`, from float8 codes.

    Args:
        query: [B, N, S, d] in any floating-point type; it and the others may be strided views.
        keys, values: [B, N, K, d] and [B, N, K, dv].
        attend: takes the codes, as `reference_attend` does.

    Returns:
        [B, N, S, dv] in the type of the query, with the memory of [B, S, N, dv].
    """
    (query_codes, query_scale), (key_codes, key_scale), (value_codes, value_scale) = (
        quantize_tensor(x.transpose(1, 2)) for x in (query, keys, values)
    )
    codes = attend(
        query_codes, key_codes, value_codes, query_scale, key_scale, value_scale, value_scale.reciprocal()
    )
    return (codes.float() * value_scale).to(query.dtype).transpose(1, 2)


def quantize_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous codes float8_e4m3fn of x in any floating-point type and shape, and their scale [1] float32.

    The largest magnitude becomes 448, so nothing saturates; a tensor that is not finite becomes NaN.
    """
    wide = x.float()
    scale = (wide.abs().amax() / LARGEST).clamp(min=LEAST_SCALE).view(1)
    # As in `quantize_rows`: the cast of values beyond 448 depends on version and device.
    codes = (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.contiguous(), scale


def reference_attend(
    query: Tensor, keys: Tensor, values: Tensor,
    query_scale: Tensor, key_scale: Tensor, value_scale: Tensor, output_scale: Tensor,
) -> Tensor:  # fmt: skip
    """Attention to what the codes stand for, in float32 but for the rounded weights and output.

    Args:
        query, keys, values: codes [B, S, N, d], [B, K, N, d] and [B, K, N, dv], float8_e4m3fn.
        query_scale, key_scale, value_scale: [1] float32, what a unit of the codes stands for.
        output_scale: [1] float32, what the output is multiplied by before it is rounded.

    Returns:
        Codes [B, S, N, dv] float8_e4m3fn, contiguous.
    """
    query, keys = (x.float().transpose(1, 2) * s for x, s in ((query, query_scale), (keys, key_scale)))
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (weights * SOFTMAX_SCALE).to(torch.float8_e4m3fn).float()
    means = rounded @ values.float().transpose(1, 2) / (SOFTMAX_SCALE * weights.sum(-1, keepdim=True))
    # Rounded weights may add up to more than 1, and a mean of the largest values to more than 448.
    scaled = (means * (value_scale * output_scale)).clamp(-LARGEST, LARGEST)
    return scaled.to(torch.float8_e4m3fn).transpose(1, 2).contiguous()
