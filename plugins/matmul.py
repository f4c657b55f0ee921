"""The operator as two matrix products in the type of its inputs, for bfloat16 on a CPU.

PyTorch's fused CPU kernel converts bfloat16 as it goes and is several times slower, above all in the backward
pass (LOG.md, 2026-11-25).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.sdpa import without_empty


def suits(query: Tensor) -> bool:
    """Whether this is the fastest form for queries like `query`."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """See `plugins.reference.attention`."""
    keys, values, mask = without_empty(keys, values, valid)
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is None:
        return scores.softmax(-1) @ values
    # The second fill makes the weights of a window without a single valid key zero instead of NaN.
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0) @ values
