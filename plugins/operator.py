"""The one entry point to self-attention over the latent window; the backend is chosen here.

Same signatures as `plugins.reference`, which documents the shapes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins import reference

Backend = Literal["reference", "sdpa", "matmul"]

expand = reference.expand


def choose_backend(query: Tensor) -> Backend:
    """The fastest backend for queries like `query`."""
    # PyTorch's fused CPU kernel is several times slower in bfloat16 than two matrix products.
    return "matmul" if query.device.type == "cpu" and query.dtype == torch.bfloat16 else "sdpa"


def mla_attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None, *, backend: Backend | None = None
) -> Tensor:
    """Rotated queries against expanded keys and values: see `plugins.reference.attention`."""
    backend = backend or choose_backend(query)
    if backend == "reference":
        return reference.attention(query, keys, values, valid)
    if backend == "matmul":
        scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
        masked = scores if valid is None else scores.masked_fill(~valid, float("-inf"))
        return masked.softmax(-1) @ values
    mask = None if valid is None else valid[None, None, None]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def mla_attention_absorbed(
    query: Tensor,
    entries: Tensor,
    valid: Tensor,
    *,
    content_width: int,
    scale: float,
    backend: Backend = "sdpa",
) -> Tensor:
    """Queries in latent space against the entries: see `plugins.reference.attention_absorbed`."""
    if backend == "reference":
        return reference.attention_absorbed(query, entries, valid, content_width, scale)
    shared = entries[:, None].expand(-1, query.shape[1], -1, -1)
    mask = valid[None, None, None]
    values = shared[..., :content_width]
    return F.scaled_dot_product_attention(query, shared, values, attn_mask=mask, scale=scale)
