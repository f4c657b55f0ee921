"""The attention operator in plain PyTorch, as the paper's equations: what every kernel must equal.

Shape letters: B batch, N heads, S query tokens (the chunk), T cached tokens, K = T + S key tokens,
C content width, R rotary width, E = C + R, dn and dv widths of a head's unrotated key part and of
its values, d = dn + R. Scores and sums are taken in float32 or wider, whatever the inputs are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels of x [..., tokens, 2 * pairs] by the angles of cos, sin [tokens, pairs].

    It is computed in the wider of both dtypes and returned in the dtype of x.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def window_entries(cached: Tensor, own: Tensor, valid: Tensor | None) -> Tensor:
    """Cached [B, T, E] and own [B, S, E] entries side by side, with zeros in empty slots: [B, K, E]."""
    if valid is None:
        return torch.cat([cached, own], dim=1)
    return torch.cat([torch.where(valid[: cached.shape[1], None], cached, 0), own], dim=1)


def expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor | None,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """Entries to per-head keys and values: k[h] = [W_uK[h] c_kv ; RoPE(k_R)], v[h] = W_uV[h] c_kv.

    Args:
        cached, own: [B, T, E] and [B, S, E], content first, then the unrotated rotary key.
        up_key: W_uK [N * dn, C].
        up_value: W_uV [N * dv, C].
        cos, sin: [K, R / 2] float32, of the window-relative positions.
        valid: [K] bool; keys and values are zero where it is False and the token is a cached one. None
            where all are valid.
        heads: N.

    Returns:
        Keys [B, N, K, dn + R] and values [B, N, K, dv] in the type of the entries.
    """
    return up_project(window_entries(cached, own, valid), up_key, up_value, cos, sin, heads)


def up_project(
    entries: Tensor, up_key: Tensor, up_value: Tensor, cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """`expand` of entries [B, K, E] that are already side by side."""
    content, rotary = entries.tensor_split([up_key.shape[1]], dim=-1)
    nope = F.linear(content, up_key).unflatten(-1, (heads, -1)).transpose(1, 2)
    values = F.linear(content, up_value).unflatten(-1, (heads, -1)).transpose(1, 2)
    shared = rotate_pairs(rotary, cos, sin)[:, None].expand(-1, heads, -1, -1)
    return torch.cat([nope, shared], dim=-1), values


def attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the valid keys.

    Args:
        query: [B, N, S, d], already rotated.
        keys, values: [B, N, K, d] and [B, N, K, dv].
        valid: [K] bool; keys and values where it is False contribute nothing, even if they are NaN.

    Returns:
        [B, N, S, dv] in the type of `query`; zeros if nothing is valid.
    """
    return _attend(query, keys, values, valid, query.shape[-1] ** -0.5)


def attention_absorbed(
    query: Tensor, cached: Tensor, own: Tensor, cos: Tensor, sin: Tensor, valid: Tensor, scale: float
) -> Tensor:
    """Attention in latent space: one key of width E and one value of width C, shared by all heads.

    Args:
        query: [B, N, S, E]: W_uK[h]^T q_nope[h] beside the rotated q_R[h].
        cached, own, cos, sin, valid: as for `expand`.
        scale: 1 / sqrt(dn + R), that of the expanded form.

    Returns:
        [B, N, S, C]: softmax-weighted sums of c_kv, to be projected by W_uV[h].
    """
    keys = turned(window_entries(cached, own, valid), cos, sin)[:, None]
    return _attend(query, keys, keys[..., : -2 * cos.shape[-1]], valid, scale)


def turned(entries: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Entries [B, K, E] with their rotary part rotated: the keys of the absorbed form."""
    content, rotary = entries.tensor_split([entries.shape[-1] - 2 * cos.shape[-1]], dim=-1)
    return torch.cat([content, rotate_pairs(rotary, cos, sin)], dim=-1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    empty = ~valid
    scores = query.to(wide) @ keys.to(wide).transpose(-1, -2) * scale
    # The second fill makes the weights of a window without a single valid key zero instead of NaN.
    weights = scores.masked_fill(empty, float("-inf")).softmax(-1).masked_fill(empty, 0)
    return (weights @ values.to(wide).masked_fill(empty[:, None], 0)).to(query.dtype)


def dequantized(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float8 values x [B, N, tokens, width] times the scale [N] of their head, in `dtype`."""
    return (x.float() * scale[:, None, None]).to(dtype)
