"""The one entry point to self-attention over the latent window; the backend is chosen here.

Same signatures as `plugins.reference`, which documents the shapes.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from plugins import reference

Backend = Literal["reference", "sdpa"]

expand = reference.expand


def mla_attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, *, backend: Backend = "sdpa"
) -> Tensor:
    """Rotated queries against expanded keys and values: see `plugins.reference.attention`."""
    if backend == "reference":
        return reference.attention(query, keys, values, valid)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=valid[None, None, None])


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
    return F.scaled_dot_product_attention(query, shared, shared[..., :content_width], attn_mask=mask, scale=scale)
