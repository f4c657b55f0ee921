"""Launches the kernels: chooses tiles and splits, and allocates outputs.

Each launch is a `torch.library.triton_op`, so that compilers see the kernel and packages contain it. Under
TRITON_INTERPRET=1 the same code runs on CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from plugins.triton.absorbed import absorbed as absorbed_kernel
from plugins.triton.attention import attention as attention_kernel
from plugins.triton.attention import attention_strided as strided_kernel
from plugins.triton.attention import merge as merge_kernel
from plugins.triton.expand import expand as expand_kernel
from plugins.triton.split_kv import Launch, TimedSplits, Timer, best_splits
from plugins.triton.tiles import (
    LOG2_E,
    Operator,
    Tile,
    divisor,
    halves,
    power_of_two,
    rotary_pairs,
    tile,
)

MERGE_ROWS = 16
TIMED_SPLITS = TimedSplits()
"""The splits that this process has timed; a launch that was never timed takes the predicted number."""


def expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """See `plugins.reference.expand`."""
    keys, values = _expand(cached, own, up_key, up_value, cos, sin, valid, heads)
    return keys, values


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    scales: Tensor | None,
    splits: int | None = None,
) -> Tensor:
    """See `plugins.mla_attention`; `splits` overrides into how many parts the keys are cut."""
    batch, heads, rows, _ = query.shape
    if splits is None:
        splits = _splits("mla_attention", query, rows, batch * heads, valid.shape[0])
    out: Tensor = _attention(query, keys, values, valid, scales, splits)
    return out


def attention_strided(query: Tensor, keys: Tensor, values: Tensor, splits: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for inputs of any strides, channels side by side, in bfloat16 or float16.

    Not for graphs: compilers see none of its kernels.

    Args:
        query: [B, N, S, d].
        keys, values: [B, N, K, d] and [B, N, K, dv].
        splits: into how many parts the keys are cut.

    Returns:
        [B, S, N, dv], contiguous.
    """
    batch, heads, rows, width = query.shape
    deep, size = values.shape[-1], _tile("mla_attention", query)
    out, parts, sums = _outputs(query.transpose(1, 2), deep, splits)
    strides = [length for tensor in (query, keys, values) for length in tensor.stride()[:2]]
    strided_kernel[(-(-rows // size.rows), batch * heads, splits)](
        query, keys, values, rows, keys.shape[2], heads, *strides, parts, sums,
        QUERY=query.stride(2), KEY=keys.stride(2), VALUE=values.stride(2), SCALE=width**-0.5 * LOG2_E,
        D=width, DV=deep, BLOCK_Q=size.rows, BLOCK_K=size.columns, SPLITS=splits,
        num_warps=size.num_warps, num_stages=size.num_stages,
    )  # fmt: skip
    return _merged(out, parts, sums, splits)


def absorbed(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    scales: Tensor | None,
    splits: int | None = None,
) -> Tensor:
    """See `plugins.mla_attention_absorbed`; `splits` overrides into how many parts the keys are cut."""
    batch, heads, rows, _ = query.shape
    if splits is None:
        splits = _splits("mla_attention_absorbed", query, heads * rows, batch, valid.shape[0])
    out: Tensor = _absorbed(query, cached, own, cos, sin, valid, scale, scales, splits)
    return out


def time_absorbed_splits(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    timer: Timer,
) -> int:
    """Time `absorbed` with few splits; later calls of the same sizes take the number that is fastest."""
    batch, heads, rows, _ = query.shape
    launch = _launch("mla_attention_absorbed", query, heads * rows, batch, valid.shape[0])
    inputs = (query, cached, own, cos, sin, valid, scale, None)
    return TIMED_SPLITS.time(launch, lambda splits: absorbed(*inputs, splits=splits), timer)


@triton_op("vmla::triton_expand", mutates_args=())
def _expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    batch, n_cached, _ = cached.shape
    content, rotary = up_key.shape[1], 2 * cos.shape[1]
    nope, deep = up_key.shape[0] // heads, up_value.shape[0] // heads
    keys = cached.new_empty(batch, heads, valid.shape[0], nope + rotary)
    values = cached.new_empty(batch, heads, valid.shape[0], deep)
    size = _tile("expand", cached)
    tiles = -(-n_cached // size.rows) + -(-own.shape[1] // size.rows)
    wrap_triton(expand_kernel)[(tiles, heads, batch)](
        cached, own, up_key, up_value, cos, sin, valid, n_cached, own.shape[1], keys, values,
        C=content, R=rotary, DN=nope, DV=deep, PAD_C=divisor(content),
        PAD_R=power_of_two(rotary // 2, least=1), PAD_N=power_of_two(nope), PAD_V=power_of_two(deep),
        BLOCK=size.rows, num_warps=size.num_warps, num_stages=size.num_stages,
    )  # fmt: skip
    return keys, values


@triton_op("vmla::triton_attention", mutates_args=())
def _attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, scales: Tensor | None, splits: int
) -> Tensor:
    batch, heads, rows, width = query.shape
    deep, size = values.shape[-1], _tile("mla_attention", query)
    out, parts, sums = _outputs(query, deep, splits)
    wrap_triton(attention_kernel)[(-(-rows // size.rows), batch * heads, splits)](
        query, keys, values, valid, scales, rows, valid.shape[0], heads, parts, sums,
        SCALE=width**-0.5 * LOG2_E, D=width, DV=deep, BLOCK_Q=size.rows, BLOCK_K=size.columns,
        SPLITS=splits, num_warps=size.num_warps, num_stages=size.num_stages,
    )  # fmt: skip
    return _merged(out, parts, sums, splits)


@triton_op("vmla::triton_absorbed", mutates_args=())
def _absorbed(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    scales: Tensor | None,
    splits: int,
) -> Tensor:
    batch, heads, rows, entry = query.shape
    rotary = 2 * cos.shape[1]
    parts_of_content = halves(entry - rotary)
    assert parts_of_content is not None, "checked when the backend was chosen"
    size = _tile("mla_attention_absorbed", query)
    out, parts, sums = _outputs(query, entry - rotary, splits)
    # All heads attend to the same latents, so heads and queries are the rows of one query matrix (as in MQA).
    wrap_triton(absorbed_kernel)[(-(-heads * rows // size.rows), batch, splits)](
        query, cached, own, cos, sin, valid, scales, heads * rows, rows, cached.shape[1], own.shape[1],
        parts, sums, SCALE=scale * LOG2_E, C0=parts_of_content[0], C1=parts_of_content[1], R=rotary,
        HALF=rotary_pairs(rotary, query.element_size()), BLOCK_Q=size.rows, BLOCK_K=size.columns,
        SPLITS=splits, num_warps=size.num_warps, num_stages=size.num_stages,
    )  # fmt: skip
    return _merged(out, parts, sums, splits)


def _outputs(query: Tensor, deep: int, splits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result [..., deep] of a query [..., d], where the kernel writes, and log-sums if keys are split."""
    # Float8 has three bits of mantissa and no scale here; the product that follows takes bfloat16.
    kind = torch.bfloat16 if query.dtype == torch.float8_e4m3fn else query.dtype
    out = query.new_empty(*query.shape[:-1], deep, dtype=kind)
    if splits == 1:
        return out, out, None
    # Parts stay float32 until they are merged: rounded once, as without splits.
    parts = query.new_empty(splits, *out.shape, dtype=torch.float32)
    return out, parts, query.new_empty(parts.shape[:-1], dtype=torch.float32)


def _merged(out: Tensor, parts: Tensor, sums: Tensor | None, splits: int) -> Tensor:
    if sums is not None:
        deep = out.shape[-1]
        rows = out.numel() // deep
        wrap_triton(merge_kernel)[(-(-rows // MERGE_ROWS),)](
            parts, sums, rows, out,
            WIDTH=deep, DEEP=power_of_two(deep), BLOCK=MERGE_ROWS, SPLITS=splits,
        )  # fmt: skip
    return out


def _tile(operator: Operator, like: Tensor) -> Tile:
    if like.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(like.device)
        return tile(operator, capability=10 * major + minor)
    return tile(operator, capability=90, size="compact")  # Triton's interpreter, where any tile runs


def _splits(operator: Operator, like: Tensor, rows: int, batch: int, tokens: int) -> int:
    if (timed := TIMED_SPLITS.find(_launch(operator, like, rows, batch, tokens))) is not None:
        return timed
    if like.device.type != "cuda":
        return 1
    size = _tile(operator, like)
    processors = torch.cuda.get_device_properties(like.device).multi_processor_count
    return best_splits(-(-rows // size.rows) * batch, tokens, processors)


def _launch(operator: Operator, like: Tensor, rows: int, batch: int, tokens: int) -> Launch:
    return Launch(operator, str(like.dtype), rows, batch, tokens)
