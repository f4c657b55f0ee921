"""Entries of a window to per-head keys (nope | rotated rope) and values, in one pass.

Scope: bfloat16 and float16. C a multiple of 16, R even; dn and dv any, padded to powers of two
inside. Written for C 192, R 32, dn 96, dv 128.
Limits: B N K (dn + R), B N K dv and B T E stay below 2^31. Products are summed in float32.
Layout: cached [B, T, E], own [B, S, E], up_key [N dn, C], up_value [N dv, C], keys
[B, N, K, dn + R], values [B, N, K, dv], contiguous, content before the rotary part; cos, sin
[K, R / 2] float32; valid [K], one byte each. One program makes BLOCK tokens of one head (grid: tiles
of cached and then of own tokens, N, B); a tile lies on one side of the border between them.
Keys and values of empty slots are written as zeros, and their entries are never read.
Origin: the up-projection of arXiv 2605.30351, section 3.1, with the rotation as its epilogue.
"""

import triton
import triton.language as tl


@triton.jit
def expand(
    cached, own, up_key, up_value, cos, sin, valid, n_cached, n_own, keys, values,
    C: tl.constexpr, R: tl.constexpr, DN: tl.constexpr, DV: tl.constexpr, PAD_C: tl.constexpr,
    PAD_R: tl.constexpr, PAD_N: tl.constexpr, PAD_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of tokens of one head. PAD_C divides C; the other PAD_x are powers of two that hold x."""
    E: tl.constexpr = C + R
    D: tl.constexpr = DN + R
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n_tiles = tl.cdiv(n_cached, BLOCK)
    is_cached = tile < n_tiles
    tokens = tl.where(is_cached, tile, tile - n_tiles) * BLOCK + tl.arange(0, BLOCK)
    before = tl.where(is_cached, 0, n_cached)
    n_tokens = tl.where(is_cached, n_cached, n_own)
    if is_cached:
        entries = cached + batch.to(tl.int64) * n_cached * E
    else:
        entries = own + batch.to(tl.int64) * n_own * E
    present = tokens < n_tokens
    filled = tl.load(valid + before + tokens, mask=present, other=0) != 0

    inner, nope, deep = tl.arange(0, PAD_C), tl.arange(0, PAD_N), tl.arange(0, PAD_V)
    key_sums = tl.zeros([BLOCK, PAD_N], tl.float32)
    value_sums = tl.zeros([BLOCK, PAD_V], tl.float32)
    # C in steps of the largest power of two that divides it (192 = 3 x 64), so no step needs a mask.
    for start in tl.static_range(0, C, PAD_C):
        content = tl.load(
            entries + tokens[:, None] * E + start + inner[None, :], mask=filled[:, None], other=0.0
        )
        key_rows = up_key + (head * DN + nope[None, :]) * C + start + inner[:, None]
        value_rows = up_value + (head * DV + deep[None, :]) * C + start + inner[:, None]
        key_sums = tl.dot(content, tl.load(key_rows, mask=nope[None, :] < DN, other=0.0), key_sums)
        value_sums = tl.dot(content, tl.load(value_rows, mask=deep[None, :] < DV, other=0.0), value_sums)

    # Every head writes its own copy of the one shared rotary key: attention then reads plain keys of width D.
    pairs = tl.arange(0, PAD_R)
    turning = filled[:, None] & (pairs[None, :] < R // 2)
    angle = (before + tokens[:, None]) * (R // 2) + pairs[None, :]
    c = tl.load(cos + angle, mask=turning, other=0.0)
    s = tl.load(sin + angle, mask=turning, other=0.0)
    rotary = entries + tokens[:, None] * E + C + 2 * pairs[None, :]
    even = tl.load(rotary, mask=turning, other=0.0).to(tl.float32)
    odd = tl.load(rotary + 1, mask=turning, other=0.0).to(tl.float32)
    turned = tl.interleave(even * c - odd * s, even * s + odd * c)

    kind: tl.constexpr = keys.dtype.element_ty
    line = (batch * tl.num_programs(1) + head).to(tl.int64) * (n_cached + n_own) + before + tokens[:, None]
    channels = tl.arange(0, 2 * PAD_R)
    here = present[:, None]
    tl.store(keys + line * D + nope[None, :], key_sums.to(kind), mask=here & (nope[None, :] < DN))
    tl.store(keys + line * D + DN + channels[None, :], turned.to(kind), mask=here & (channels[None, :] < R))
    tl.store(values + line * DV + deep[None, :], value_sums.to(kind), mask=here & (deep[None, :] < DV))
