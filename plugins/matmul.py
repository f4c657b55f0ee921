"""The operator as two matrix products in the type of its inputs, for bfloat16 on a CPU.

PyTorch's fused CPU kernel converts bfloat16 as it goes and is several times slower than this, backward
above all: LOG.md, 2026-11-25.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.sdpa import without_empty


def suits(query: Tensor) -> bool:
    """Whether this is the fastest form for queries like `query`."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """See `plugins.reference.attention`; at least one key must be valid."""
    keys, values, mask = without_empty(keys, values, valid)
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ values
