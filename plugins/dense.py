"""Attention to all keys, as a text needs it: every library has it, so it is no operator of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from plugins import matmul
from plugins.sdpa import preferred


def dense_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for query [B, N, S, d], keys [B, N, K, d], values [B, N, K, dv]."""
    if matmul.suits(query):
        return (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ values
    with preferred(query):
        return F.scaled_dot_product_attention(query, keys, values)
