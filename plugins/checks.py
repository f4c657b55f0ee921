"""Checks the operators' arguments by shape, dtype and device, before anything is launched; reads no values.

Messages name the operator, the argument and what was expected. Under autocast the dtypes of the arguments may
differ, because autocast converts them.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOAT8 = torch.float8_e4m3fn


def check_expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor | None,
    heads: int,
) -> None:
    """Refuse arguments that `plugins.expand` cannot take.

    Raises:
        ValueError: for a wrong shape or device.
        TypeError: for a wrong dtype.
    """
    name = "vmla::expand"
    content = _check_window(name, cached, own, cos, sin, valid)
    if heads < 1:
        raise ValueError(f"{name}: heads must be at least 1, not {heads}")
    for argument, weight in (("up_key", up_key), ("up_value", up_value)):
        if weight.ndim != 2 or weight.shape[1] != content or weight.shape[0] % heads:
            raise _wrong_shape(name, argument, f"[a multiple of N = {heads}, C = {content}]", weight)
        _check_kind(name, argument, weight, cached, "cached")


def check_attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, scales: Tensor | None
) -> None:
    """Refuse arguments that `plugins.mla_attention` cannot take; raises as `check_expand`."""
    name = "vmla::mla_attention"
    if query.ndim != 4:
        raise _wrong_shape(name, "query", "[B, N, S, d]", query)
    batch, heads, _, width = query.shape
    tokens = valid.shape[0]
    if keys.shape != (batch, heads, tokens, width):
        raise _wrong_shape(name, "keys", f"[B, N, K, d] = {[batch, heads, tokens, width]}", keys)
    if values.ndim != 4 or values.shape[:3] != (batch, heads, tokens):
        raise _wrong_shape(name, "values", f"[B, N, K, dv] = [{batch}, {heads}, {tokens}, dv]", values)
    _check_query(name, query, scales, 3)
    _check_kind(name, "keys", keys, query, "query")
    _check_kind(name, "values", values, query, "query")
    _check_valid(name, valid, tokens, query)


def check_absorbed(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    scales: Tensor | None,
) -> None:
    """Refuse arguments that `plugins.mla_attention_absorbed` cannot take; raises as `check_expand`."""
    name = "vmla::mla_attention_absorbed"
    _check_window(name, cached, own, cos, sin, valid)
    batch, _, width = cached.shape
    if query.ndim != 4 or query.shape[0] != batch or query.shape[3] != width:
        raise _wrong_shape(name, "query", f"[B, N, S, E] = [{batch}, N, S, {width}]", query)
    if not 0 < scale < float("inf"):
        raise ValueError(f"{name}: scale must be positive and finite, not {scale}")
    _check_query(name, query, scales, 2)
    _check_kind(name, "query", query, cached, "cached")


def _check_window(
    name: str, cached: Tensor, own: Tensor, cos: Tensor, sin: Tensor, valid: Tensor | None
) -> int:
    """Check entries, rotation tables and, if given, validity; return the content width."""
    if cached.ndim != 3:
        raise _wrong_shape(name, "cached", "[B, T, E]", cached)
    batch, before, width = cached.shape
    if own.ndim != 3 or own.shape[0] != batch or own.shape[2] != width:
        raise _wrong_shape(name, "own", f"[B, S, E] = [{batch}, S, {width}]", own)
    tokens = before + own.shape[1]
    for argument, table in (("cos", cos), ("sin", sin)):
        if table.ndim != 2 or table.shape[0] != tokens or table.shape != cos.shape:
            raise _wrong_shape(name, argument, f"[K, R / 2] = [{tokens}, R / 2]", table)
        if table.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: {argument} must be float32, not {_short(table)}")
        _check_device(name, argument, table, cached, "cached")
    content = width - 2 * cos.shape[1]
    if content < 1:
        raise _wrong_shape(name, "cos", f"[K, R / 2] with R < E = {width}", cos)
    _check_kind(name, "own", own, cached, "cached")
    if valid is not None:
        _check_valid(name, valid, tokens, cached)
    return content


def _check_query(name: str, query: Tensor, scales: Tensor | None, rows: int) -> None:
    """Check the query, and that scales for each head are given for float8 and only for float8."""
    if query.dtype == FLOAT8:
        shape = (rows, query.shape[1])
        if scales is None:
            raise ValueError(f"{name}: float8 inputs need scales [{rows}, N] = {list(shape)}")
        if scales.shape != shape:
            raise _wrong_shape(name, "scales", f"[{rows}, N] = {list(shape)}", scales)
        if scales.dtype != torch.float32:
            raise TypeError(f"{name}: scales must be float32, not {_short(scales)}")
        _check_device(name, "scales", scales, query, "query")
    elif query.dtype not in FLOATS:
        known = "float32, bfloat16, float16 or float8_e4m3fn"
        raise TypeError(f"{name}: query must be {known}, not {_short(query)}")
    elif scales is not None:
        raise ValueError(f"{name}: scales come with float8 inputs only, and query is {_short(query)}")


def _check_valid(name: str, valid: Tensor, tokens: int, like: Tensor) -> None:
    if valid.shape != (tokens,):
        raise _wrong_shape(name, "valid", f"[K] = [{tokens}]", valid)
    if valid.dtype != torch.bool:
        raise TypeError(f"{name}: valid must be bool, not {_short(valid)}")
    _check_device(name, "valid", valid, like, "the other arguments")


def _check_kind(name: str, argument: str, tensor: Tensor, like: Tensor, whose: str) -> None:
    _check_device(name, argument, tensor, like, whose)
    if tensor.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise TypeError(f"{name}: {argument} must be {_short(like)} like {whose}, not {_short(tensor)}")


def _check_device(name: str, argument: str, tensor: Tensor, like: Tensor, whose: str) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: {argument} must be on {like.device} like {whose}, not on {tensor.device}")


def _wrong_shape(name: str, argument: str, expected: str, tensor: Tensor) -> ValueError:
    return ValueError(f"{name}: {argument} must be {expected}, not {list(tensor.shape)}")


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
