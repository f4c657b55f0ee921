"""Absorbed attention: queries in latent space against the ring and the chunk themselves, forward only.

Scope: bfloat16, float16, and float8 e4m3 with scales for each head. One key of width E = C + R and
one value of width C for all heads, so heads are rows: N S of them. C is C0 + C1, powers of two of at
least 16 (32 for float8), or C1 = 0; written for 192 = 128 + 64 and R = 32.
Limits: B N S E, B T E and B N S splits C stay below 2^31. Sums are kept in float32. float8 entries
rotate in float32 and are rounded back for the product; weights of at most 1 are spread over the range
of e4m3 (448) by a factor of 256, which is taken out at the end.
Layout: query [B, N S, E], cached [B, T, E], own [B, S', E], out [B, N S, C], contiguous, content
before the rotary part; cos, sin [T + S', R / 2] float32; valid [T + S'], one byte each; scales
[2, N] float32. Grid: row tiles, B, splits; `out`, `lse` and splits as in `plugins.triton.attention`.
The rotary part of a key is turned as it is read, in HALF pairs of channels, of which R / 2 count; a
latent tile is read once, as key and as value. Cached and own tokens are two loops over
one body: nothing is concatenated. Empty slots are never read.
Origin: the absorption of DeepSeek-V2 (arXiv 2405.04434, section 2.1.3) for VideoMLA's widths; one
tile as key and value as in FlashMLA; the online softmax of FlashAttention-2 (arXiv 2307.08691).
"""

import triton
import triton.language as tl

from plugins.triton.softmax import online_softmax


@triton.jit
def rotary_keys(rotary, cos, sin, tokens, filled, R: tl.constexpr, HALF: tl.constexpr):
    """The turned rotary parts [BLOCK_K, 2 HALF], in float32, of entries whose own lie at `rotary`."""
    pairs = tl.arange(0, HALF)[None, :]
    # HALF pads R / 2 to what a product needs. The padding is zero here and in the query, and adds nothing.
    there = filled[:, None] & (pairs < R // 2)
    angle = tokens[:, None] * (R // 2) + pairs
    c = tl.load(cos + angle, mask=there, other=0.0)
    s = tl.load(sin + angle, mask=there, other=0.0)
    even = tl.load(rotary + 2 * pairs, mask=there, other=0.0).to(tl.float32)
    odd = tl.load(rotary + 2 * pairs + 1, mask=there, other=0.0).to(tl.float32)
    return tl.interleave(even * c - odd * s, even * s + odd * c)


@triton.jit
def absorbed(
    query, cached, own, cos, sin, valid, scales, n_rows, n_queries, n_cached, n_own, out, lse,
    SCALE: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One tile of rows; SCALE is that of the scores times log2(e)."""
    C: tl.constexpr = C0 + C1
    E: tl.constexpr = C + R
    batch, split = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    first, channels = tl.arange(0, C0), tl.arange(0, 2 * HALF)
    inside = rows < n_rows
    line = query + batch.to(tl.int64) * n_rows * E + rows[:, None] * E
    q0 = tl.load(line + first[None, :], mask=inside[:, None], other=0.0)
    q_r = tl.load(line + C + channels[None, :], mask=inside[:, None] & (channels[None, :] < R), other=0.0)
    if C1 > 0:
        second = C0 + tl.arange(0, C1)
        q1 = tl.load(line + second[None, :], mask=inside[:, None], other=0.0)
        sums1 = tl.zeros([BLOCK_Q, C1], tl.float32)
    factor = tl.full([BLOCK_Q], SCALE, tl.float32)
    if scales is not None:
        head = tl.minimum(rows, n_rows - 1) // n_queries  # rows beyond the end borrow the last head's
        scale_in = tl.load(scales + n_rows // n_queries + head)
        factor = SCALE * tl.load(scales + head) * scale_in
    top, total = tl.full([BLOCK_Q], float("-inf"), tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    sums0 = tl.zeros([BLOCK_Q, C0], tl.float32)
    for part in tl.static_range(2):  # unrolled: compiled once for the ring and once for the chunk
        if part == 0:
            entries, n_tokens, before = cached + batch.to(tl.int64) * n_cached * E, n_cached, 0
        else:
            entries, n_tokens, before = own + batch.to(tl.int64) * n_own * E, n_own, n_cached
        share = tl.cdiv(tl.cdiv(n_tokens, BLOCK_K), SPLITS) * BLOCK_K
        for start in range(split * share, tl.minimum(n_tokens, split * share + share), BLOCK_K):
            tokens = start + tl.arange(0, BLOCK_K)
            filled = tl.load(valid + before + tokens, mask=tokens < n_tokens, other=0) != 0
            here = entries + tokens[:, None] * E
            k0 = tl.load(here + first[None, :], mask=filled[:, None], other=0.0)
            k_r = rotary_keys(here + C, cos, sin, before + tokens, filled, R, HALF).to(k0.dtype)
            scores = tl.dot(q_r, tl.trans(k_r), tl.dot(q0, tl.trans(k0)))  # C + R is no power of two
            if C1 > 0:
                k1 = tl.load(here + second[None, :], mask=filled[:, None], other=0.0)
                scores = tl.dot(q1, tl.trans(k1), scores)
            weights, shrink, top, total = online_softmax(scores * factor[:, None], filled, top, total)
            if scales is not None:
                weights *= 256.0  # spread over the range of e4m3; see above
            sums0 = tl.dot(weights.to(k0.dtype), k0, sums0 * shrink[:, None])
            if C1 > 0:
                sums1 = tl.dot(weights.to(k0.dtype), k1, sums1 * shrink[:, None])
    scale_out = 1.0 / tl.where(total == 0.0, 1.0, total)
    if scales is not None:
        scale_out *= scale_in / 256.0
    place = (split * tl.num_programs(1) + batch).to(tl.int64) * n_rows
    target = out + (place + rows[:, None]) * C
    sums0 = (sums0 * scale_out[:, None]).to(out.dtype.element_ty)
    tl.store(target + first[None, :], sums0, mask=inside[:, None])
    if C1 > 0:
        sums1 = (sums1 * scale_out[:, None]).to(out.dtype.element_ty)
        tl.store(target + second[None, :], sums1, mask=inside[:, None])
    if SPLITS > 1:
        tl.store(lse + place + rows, top + tl.log2(total), mask=inside)
