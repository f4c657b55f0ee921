"""Rewrites programs in fewer and simpler operations before they are exported to ONNX.

The exporter translates each operation by itself and for any shape: a split becomes a sequence, which TensorRT
does not support, and a reshape computes at run time what is known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from plugins import sdpa

_ATEN = torch.ops.aten


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """`program` with the operations of `REPLACED` written out for its static shapes."""
    made: ExportedProgram = program.run_decompositions(REPLACED)
    return made


def decomposed_with_attention(program: ExportedProgram) -> ExportedProgram:
    """The program as `decomposed` makes it, with attention over the window written out too."""
    made: ExportedProgram = program.run_decompositions({**REPLACED, **WINDOW_ATTENTION})
    return made


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    return [x.select(dim, index) for index in range(x.shape[dim])]


def _split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [_ATEN.slice.Tensor(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    whole = x.shape[dim]
    return [_ATEN.slice.Tensor(x, dim, start, min(start + size, whole)) for start in range(0, whole, size)]


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    dim %= x.ndim
    known = math.prod(size for size in sizes if size != -1)
    whole = [x.shape[dim] // known if size == -1 else size for size in sizes]
    return x.reshape([*x.shape[:dim], *whole, *x.shape[dim + 1 :]])


def _flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    start, end = start % x.ndim, end % x.ndim
    return x.reshape([*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]])


def _repeat_interleave(x: Tensor, repeats: int, dim: int | None = None, **_: Any) -> Tensor:
    if dim is None:
        x, dim = x.reshape([x.numel()]), 0
    shape = [*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]]
    return _flatten(x.unsqueeze(dim + 1).expand(shape), dim, dim + 1)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with queries scaled beforehand in float32, and the mask over keys repeated for each query.

    TensorRT would multiply queries and keys by the root of the scale, rounded to their type, which shifts
    every score in the same direction. ONNX Runtime (1.32) requires a row of the mask for each query.
    """
    if scale == 1 and (mask is None or mask.shape[-2] == query.shape[-2]):
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scaled = (query.float() * factor).to(query.dtype)
    rows = None if mask is None else mask.expand(*mask.shape[:-2], query.shape[-2], mask.shape[-1])
    return F.scaled_dot_product_attention(scaled, key, value, rows, scale=1.0)


def _window_attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, **_: Any) -> Tensor:
    return sdpa.attention(query, keys, values, valid)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, *rest: Any
) -> Any:
    """Layer norm with a gain of ones where there is none: ONNX requires a gain."""
    if weight is not None:
        return NotImplemented
    return F.layer_norm(x, shape, torch.ones(shape, dtype=x.dtype, device=x.device), bias, rest[0])


REPLACED: dict[Any, Callable[..., Any]] = {
    _ATEN.unbind.int: _unbind,
    _ATEN.split_with_sizes.default: _split_with_sizes,
    _ATEN.split.Tensor: _split,
    _ATEN.unflatten.int: _unflatten,
    _ATEN.flatten.using_ints: _flatten,
    _ATEN.numpy_T.default: lambda x: x.transpose(0, 1),
    _ATEN.repeat_interleave.self_int: _repeat_interleave,
    _ATEN.layer_norm.default: _layer_norm,
    _ATEN.scaled_dot_product_attention.default: _attention,
}

WINDOW_ATTENTION: dict[Any, Callable[..., Any]] = {torch.ops.vmla.mla_attention.default: _window_attention}
"""Whatever the type, the composition that ONNX has an operation for."""
