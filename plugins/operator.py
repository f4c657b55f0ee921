"""Self-attention over the latent window as three operators of PyTorch, in the namespace `vmla`.

Each is registered as a composition (CompositeImplicitAutograd) that checks its arguments, chooses a backend
and calls it. That one registration serves all users:

- `torch.export` keeps the operator as a single node, so an ONNX or TensorRT export may translate it;
- `run_decompositions`, `torch.compile` and AOTInductor replace it by the matrix products and the
  attention call it is made of, fuse across it, and leave nothing in a package that the loading
  process would have to register;
- autograd and fake tensors go through the composition, so there is no second formula to keep equal.

The functions of this module call the operator where a graph is traced, and its composition directly
where none is. That is the same code without the dispatcher's overhead (6 us of about 100 for a small layer).

An operator with kernels of its own registered from Python would be opaque to Inductor and would have
to be registered wherever a package is loaded. The Triton kernels are leaves below (`plugins.triton`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins import matmul, reference, sdpa
from plugins.checks import check_absorbed, check_attention, check_expand
from plugins.dispatch import Backend, choose

_LIBRARY = torch.library.Library("vmla", "DEF")
_LIBRARY.define(
    "expand(Tensor cached, Tensor own, Tensor up_key, Tensor up_value, Tensor cos, Tensor sin,"
    " Tensor? valid, int heads, *, str backend='auto') -> (Tensor keys, Tensor values)"
)
_LIBRARY.define(
    "mla_attention(Tensor query, Tensor keys, Tensor values, Tensor valid, *,"
    " Tensor? scales=None, str backend='auto') -> Tensor"
)
_LIBRARY.define(
    "mla_attention_absorbed(Tensor query, Tensor cached, Tensor own, Tensor cos, Tensor sin,"
    " Tensor valid, float scale, *, Tensor? scales=None, str backend='auto') -> Tensor"
)

_EXPAND = torch.ops.vmla.expand.default
_ATTENTION = torch.ops.vmla.mla_attention.default
_ABSORBED = torch.ops.vmla.mla_attention_absorbed.default


def expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor | None,
    heads: int,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Entries of the window to rotated per-head keys and values: see `plugins.reference.expand`."""
    run = _EXPAND if torch.compiler.is_compiling() else _expand
    keys, values = run(cached, own, up_key, up_value, cos, sin, valid, heads, backend=backend)
    return keys, values


def mla_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    *,
    scales: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Rotated queries against expanded keys and values: see `plugins.reference.attention`.

    With float8_e4m3fn inputs, `scales` [3, N] float32 are the scales of queries, keys and values of each
    head, and the result is bfloat16.
    """
    run = _ATTENTION if torch.compiler.is_compiling() else _attention
    out: Tensor = run(query, keys, values, valid, scales=scales, backend=backend)
    return out


def mla_attention_absorbed(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    *,
    scales: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Queries in latent space against the ring itself: see `plugins.reference.attention_absorbed`.

    With float8_e4m3fn inputs, `scales` [2, N] float32 are the scales of each head's queries and of the
    entries as that head reads them, and the result is bfloat16.
    """
    run = _ABSORBED if torch.compiler.is_compiling() else _absorbed
    out: Tensor = run(query, cached, own, cos, sin, valid, scale, scales=scales, backend=backend)
    return out


def dense_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for query [B, N, S, d], keys [B, N, K, d], values [B, N, K, dv].

    Attention to all keys, for the text; every library has it, so it is not an operator of its own.
    """
    if matmul.suits(query):
        return (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ values
    with sdpa.preferred(query):
        return F.scaled_dot_product_attention(query, keys, values)


def _expand(
    cached: Tensor,
    own: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor | None,
    heads: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    check_expand(cached, own, up_key, up_value, cos, sin, valid, heads)
    inputs = (cached, own, up_key, up_value, cos, sin)
    chosen = choose("expand", backend, inputs if valid is None else (*inputs, valid))
    if chosen == "triton":
        from plugins.triton import launch

        whole = torch.ones(len(cos), dtype=torch.bool, device=cos.device) if valid is None else valid
        return launch.expand(*inputs, whole, heads)
    return (reference if chosen == "reference" else sdpa).expand(*inputs, valid, heads)


def _attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    *,
    scales: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    check_attention(query, keys, values, valid, scales)
    chosen = choose("mla_attention", backend, (query, keys, values, valid))
    if chosen == "triton":
        from plugins.triton import launch

        return launch.attention(query, keys, values, valid, scales)
    attend = {"reference": reference, "matmul": matmul}.get(chosen, sdpa).attention
    if scales is None:
        return attend(query, keys, values, valid)
    wide = _width_of(chosen)
    parts = (reference.dequantized(x, s, wide) for x, s in zip((query, keys, values), scales, strict=True))
    return attend(*parts, valid).to(torch.bfloat16)


def _absorbed(
    query: Tensor,
    cached: Tensor,
    own: Tensor,
    cos: Tensor,
    sin: Tensor,
    valid: Tensor,
    scale: float,
    *,
    scales: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    check_absorbed(query, cached, own, cos, sin, valid, scale, scales)
    window = (cached, own, cos, sin, valid)
    chosen = choose("mla_attention_absorbed", backend, (query, *window))
    if chosen == "triton":
        from plugins.triton import launch

        return launch.absorbed(query, *window, scale, scales)
    attend = (reference if chosen == "reference" else sdpa).attention_absorbed
    if scales is None:
        return attend(query, *window, scale)
    wide = _width_of(chosen)
    # The shared entries have a scale for each head: it is applied to that head's queries, and to its sums.
    scaled = reference.dequantized(query, scales[0] * scales[1], wide)
    sums = attend(scaled, cached.to(wide), own.to(wide), cos, sin, valid, scale)
    return (sums * scales[1][:, None, None]).to(torch.bfloat16)


def _width_of(backend: str) -> torch.dtype:
    """The dtype that float8 inputs are computed in by a backend without float8 kernels."""
    return torch.float32 if backend == "reference" else torch.bfloat16


for _name, _composition in (
    ("expand", _expand),
    ("mla_attention", _attention),
    ("mla_attention_absorbed", _absorbed),
):
    _LIBRARY.impl(_name, _composition, "CompositeImplicitAutograd")
