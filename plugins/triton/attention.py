"""Expanded attention: softmax(q k^T / sqrt(d)) v over the valid keys of a window, forward only.

Scope: bfloat16, float16, and float8 e4m3 with scales for each head; no causal mask. d and dv are
powers of two of at least 16 (32 for float8). Written for 128 / 128, the widths of Wan's heads.
Limits: B N S d, B N K d and B N S splits dv stay below 2^31. Sums are kept in float32.
Layout: query [B, N, S, d], keys [B, N, K, d], values [B, N, K, dv], out [B, N, S, dv], contiguous;
valid [K], one byte each; scales [3, N] float32. One program takes BLOCK_Q queries of one head
through a share of the keys (grid: query tiles, B N, splits). Without splits the result is written
at once. With splits `out` is float32 [splits, B, N, S, dv] and `lse` [splits, B, N, S], and `merge`
adds the shares up: this fills a machine that the query tiles alone leave idle.
Keys and values of empty slots are never read, so their contents cannot matter.
`attention_strided` is the same for inputs of any strides, all of whose keys count.
Origin: FlashAttention-2 (arXiv 2307.08691), with the scale folded in; the split of FlashDecoding.
"""

import triton
import triton.language as tl

from plugins.triton.softmax import full_softmax, online_softmax

COUNTED = tl.constexpr(2048)
"""Tokens whose validity `count_valid` reads with one load; a power of two, as every range of Triton's."""


@triton.jit
def count_valid(valid, first, end):
    """How many tokens from `first` to `end` are valid."""
    found = tl.zeros([COUNTED], tl.int32)
    for start in range(first, end, COUNTED):
        tokens = start + tl.arange(0, COUNTED)
        found += tl.load(valid + tokens, mask=tokens < end, other=0).to(tl.int32)
    return tl.sum(found)


@triton.jit
def attend(
    q, keys, values, valid, scales, factor, first, end,
    KEY: tl.constexpr, VALUE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Queries q [BLOCK_Q, D] against the tokens from `first` to `end` of one head, of which all count if
    `valid` is None; KEY and VALUE lie between two tokens.

    Returns weighted sums [BLOCK_Q, DV], and the largest score and the sum of weights of each query.
    """
    columns, wide, deep = tl.arange(0, BLOCK_K), tl.arange(0, D), tl.arange(0, DV)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sums = tl.zeros([BLOCK_Q, DV], tl.float32)
    # Whole blocks of a window without empty slots, which nearly all are, need no mask: loads that wait for
    # one cannot be issued ahead.
    if valid is None:
        whole = first + (end - first) // BLOCK_K * BLOCK_K
    else:
        whole = first
        if count_valid(valid, first, end) == end - first:
            whole = first + (end - first) // BLOCK_K * BLOCK_K
    for start in range(first, whole, BLOCK_K):
        tokens = start + columns
        k = tl.load(keys + tokens[None, :] * KEY + wide[:, None])
        weights, shrink, top, total = full_softmax(tl.dot(q, k), factor, top, total)
        v = tl.load(values + tokens[:, None] * VALUE + deep[None, :])
        if scales is not None:
            weights *= 256.0  # see below
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None])
    for start in range(whole, end, BLOCK_K):
        tokens = start + columns
        filled = tokens < end
        if valid is not None:
            filled = tl.load(valid + tokens, mask=filled, other=0) != 0
        k = tl.load(keys + tokens[None, :] * KEY + wide[:, None], mask=filled[None, :], other=0.0)
        weights, shrink, top, total = online_softmax(tl.dot(q, k) * factor, filled, top, total)
        v = tl.load(values + tokens[:, None] * VALUE + deep[None, :], mask=filled[:, None], other=0.0)
        if scales is not None:
            # Of at most 1, most weights would be subnormal in e4m3, which reaches 448; `scale_out` undoes it.
            weights *= 256.0
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None])
    return sums, top, total


@triton.jit
def attention(
    query, keys, values, valid, scales, n_queries, n_keys, heads, out, lse,
    SCALE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; SCALE is that of the scores times log2(e)."""
    head = tl.program_id(1)  # counts through all videos: b * N + n
    split = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wide, deep = tl.arange(0, D), tl.arange(0, DV)
    # A head's start is counted in 64 bits; within a head 32 bits suffice, and take fewer registers.
    query += head.to(tl.int64) * n_queries * D
    keys += head.to(tl.int64) * n_keys * D
    values += head.to(tl.int64) * n_keys * DV
    q = tl.load(query + rows[:, None] * D + wide[None, :], mask=rows[:, None] < n_queries, other=0.0)
    factor = SCALE
    if scales is not None:
        # The scales of queries and keys belong to the scores, so both are applied once, with SCALE.
        factor = SCALE * tl.load(scales + head % heads) * tl.load(scales + heads + head % heads)
    share = tl.cdiv(tl.cdiv(n_keys, BLOCK_K), SPLITS) * BLOCK_K
    first, end = split * share, tl.minimum(n_keys, split * share + share)
    sums, top, total = attend(
        q, keys, values, valid, scales, factor, first, end, D, DV, D, DV, BLOCK_Q, BLOCK_K
    )
    scale_out = 1.0
    if scales is not None:
        scale_out = tl.load(scales + 2 * heads + head % heads) / 256.0
    # A row without a single valid key has a total of 0, and is to give zeros instead of NaN.
    sums *= (scale_out / tl.where(total == 0.0, 1.0, total))[:, None]
    place = (split * tl.num_programs(1) + head).to(tl.int64) * n_queries
    inside = rows[:, None] < n_queries
    tl.store(out + (place + rows[:, None]) * DV + deep[None, :], sums.to(out.dtype.element_ty), mask=inside)
    if SPLITS > 1:
        tl.store(lse + place + rows, top + tl.log2(total), mask=rows < n_queries)


@triton.jit
def attention_strided(
    query, keys, values, n_queries, n_keys, heads, query_batch, query_head, keys_batch, keys_head,
    values_batch, values_head, out, lse,
    QUERY: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, SCALE: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """As `attention`, for inputs of any strides, of which all keys count; out [B, S, N, dv], lse [B, S, N].

    `x_batch` and `x_head` are the strides of x between videos and between heads, QUERY, KEY and VALUE those
    between tokens; channels lie side by side.
    """
    video, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    split = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wide, deep = tl.arange(0, D), tl.arange(0, DV)
    query += video.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    keys += video.to(tl.int64) * keys_batch + head.to(tl.int64) * keys_head
    values += video.to(tl.int64) * values_batch + head.to(tl.int64) * values_head
    inside = rows < n_queries
    q = tl.load(query + rows[:, None] * QUERY + wide[None, :], mask=inside[:, None], other=0.0)
    share = tl.cdiv(tl.cdiv(n_keys, BLOCK_K), SPLITS) * BLOCK_K
    first = split * share
    # The last of many splits may have no key left.
    end = tl.maximum(first, tl.minimum(n_keys, first + share))
    sums, top, total = attend(
        q, keys, values, None, None, SCALE, first, end, KEY, VALUE, D, DV, BLOCK_Q, BLOCK_K
    )
    sums /= tl.where(total == 0.0, 1.0, total)[:, None]
    videos = tl.num_programs(1) // heads
    place = ((split * videos + video).to(tl.int64) * n_queries + rows) * heads + head
    target = out + place[:, None] * DV + deep[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=inside[:, None])
    if SPLITS > 1:
        tl.store(lse + place, top + tl.log2(total), mask=inside)


@triton.jit
def merge(
    parts, lse, n_rows, out,
    WIDTH: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Shares [SPLITS, n_rows, WIDTH] and their base-2 log-sums [SPLITS, n_rows] to out [n_rows, WIDTH].

    DEEP is the power of two that holds WIDTH. A share that saw no valid key has a log-sum of -inf.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    deep = tl.arange(0, DEEP)
    inside = rows < n_rows
    both = inside[:, None] & (deep[None, :] < WIDTH)
    # The largest log-sum comes first, so that no exponential below can overflow.
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(lse + split * n_rows + rows, mask=inside, other=float("-inf")))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK, DEEP], tl.float32)
    for split in tl.static_range(SPLITS):
        share = tl.load(lse + split * n_rows + rows, mask=inside, other=float("-inf"))
        weight = tl.exp2(share - base)
        here = parts + (split * n_rows + rows[:, None]) * WIDTH + deep[None, :]
        sums += weight[:, None] * tl.load(here, mask=both, other=0.0)
        total += weight
    sums /= tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + rows[:, None] * WIDTH + deep[None, :], sums.to(out.dtype.element_ty), mask=both)
