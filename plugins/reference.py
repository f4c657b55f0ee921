"""The attention operator in plain PyTorch, as the paper's equations: what every kernel must equal.

Shape letters: B batch, N heads, S query tokens, K key tokens (the cached window and the chunk
itself), C content width, R rotary width, E = C + R, dn and dv widths of a head's unrotated key part
and of its values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels of x [..., K, R] by angles given as cos, sin [K, R / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def expand(
    entries: Tensor, up_key: Tensor, up_value: Tensor, cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Entries to per-head keys and values: k[h] = [W_uK[h] c_kv ; RoPE(k_R)], v[h] = W_uV[h] c_kv.

    Args:
        entries: [B, K, E], content first, then the unrotated rotary key.
        up_key: W_uK [N * dn, C].
        up_value: W_uV [N * dv, C].
        cos, sin: [K, R / 2] of the window-relative positions.
        heads: N.

    Returns:
        Keys [B, N, K, dn + R] and values [B, N, K, dv].
    """
    content, rotary = entries.split([up_key.shape[1], 2 * cos.shape[-1]], dim=-1)
    nope = (content @ up_key.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    values = (content @ up_value.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    turned = rotate_pairs(rotary, cos, sin)[:, None].expand(-1, heads, -1, -1)
    return torch.cat([nope, turned], dim=-1), values


def attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the valid keys, in float32 where the inputs are narrower.

    Args:
        query: [B, N, S, d], already rotated.
        keys, values: [B, N, K, d] and [B, N, K, dv].
        valid: [K] bool; what lies where it is False contributes nothing. None: all are valid.

    Returns:
        [B, N, S, dv] in the type of `query`.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ keys.to(wide).transpose(-1, -2) * query.shape[-1] ** -0.5
    masked = scores if valid is None else scores.masked_fill(~valid, float("-inf"))
    return (masked.softmax(-1) @ values.to(wide)).to(query.dtype)


def attention_absorbed(
    query: Tensor, entries: Tensor, valid: Tensor, content_width: int, scale: float
) -> Tensor:
    """Attention in latent space: one key of width E and one value of width C, shared by all heads.

    Args:
        query: [B, N, S, E]: W_uK[h]^T q_nope[h] beside the rotated q_R[h].
        entries: [B, K, E] with the rotary part already rotated.
        valid: [K] bool.
        content_width: C.
        scale: 1 / sqrt(dn + R), that of the expanded form.

    Returns:
        [B, N, S, C]: softmax-weighted sums of c_kv, to be projected by W_uV[h].
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = entries.to(wide)[:, None]
    scores = query.to(wide) @ keys.transpose(-1, -2) * scale
    weights = scores.masked_fill(~valid, float("-inf")).softmax(-1)
    return (weights @ keys[..., :content_width]).to(query.dtype)
