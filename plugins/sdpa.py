"""The operator through `torch.nn.functional.scaled_dot_product_attention`.

On a GPU of the Hopper generation or later cuDNN is preferred, then Flash, then the memory-efficient kernel;
`taken` tells which one a call uses. In eager mode on a CPU the mask is read, and empty slots are left out
rather than masked, which is faster and safe whatever they contain. Everywhere else, in traced graphs too,
validity stays data.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plugins.reference import turned, up_project, window_entries

ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
HOPPER = (9, 0)
"""Compute capability from which `ORDER` is preferred to PyTorch's own."""


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
    """See `plugins.reference.expand`."""
    return up_project(_entries(cached, own, valid), up_key, up_value, cos, sin, heads)


def attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """See `plugins.reference.attention`."""
    keys, values, mask = without_empty(keys, values, valid)
    if mask is not None:  # ONNX Runtime requires a row for each query
        mask = mask.expand(1, 1, query.shape[2], -1)
    with preferred(query):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def attention_absorbed(
    query: Tensor, cached: Tensor, own: Tensor, cos: Tensor, sin: Tensor, valid: Tensor, scale: float
) -> Tensor:
    """See `plugins.reference.attention_absorbed`.

    All heads share their keys, so they become rows of one head. The keys serve as values too, and the rotary
    part of the sum is dropped, because fused kernels require equal widths.
    """
    keys = turned(_entries(cached, own, valid), cos, sin)[:, None]
    keys, _, mask = without_empty(keys, keys, valid)
    rows = query.flatten(1, 2)[:, None]
    with preferred(query):
        sums = F.scaled_dot_product_attention(rows, keys, keys, attn_mask=mask, scale=scale)
    return sums[:, 0, :, : -2 * cos.shape[-1]].unflatten(1, query.shape[1:3])


def readable(valid: Tensor) -> bool:
    """Whether its values can be read without a wait: on a CPU, unless a graph is being traced."""
    return type(valid) is Tensor and valid.device.type == "cpu" and not torch.compiler.is_compiling()


def taken(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> str:
    """The backend that PyTorch uses for such a call: `cudnn`, `flash`, `efficient` or `math`."""
    with preferred(query):
        choice = SDPBackend(torch._fused_sdp_choice(query, keys, values, attn_mask=mask))
    return choice.name.removesuffix("_ATTENTION").lower()


def _entries(cached: Tensor, own: Tensor, valid: Tensor | None) -> Tensor:
    """See `plugins.reference.window_entries`."""
    if valid is not None and readable(valid) and valid.all():
        return torch.cat([cached, own], dim=1)
    return window_entries(cached, own, valid)


def without_empty(keys: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values without those of empty slots, and the mask that is still needed."""
    if not readable(valid):
        clean = torch.where(valid[:, None], keys, 0)
        return clean, torch.where(valid[:, None], values, 0), valid[None, None, None]
    if valid.all():
        return keys, values, None
    kept = valid.nonzero().flatten()
    return keys.index_select(2, kept), values.index_select(2, kept), None


def preferred(query: Tensor) -> AbstractContextManager[None]:
    """Inside, PyTorch prefers cuDNN where that is fastest."""
    return preferred_on(query.device)


def preferred_on(device: torch.device) -> AbstractContextManager[None]:
    """`preferred` for tensors on `device`; an exported program is to be decomposed inside.

    Such a program has no backend yet: the preference that held while it was traced is not part of its graph,
    and PyTorch chooses anew when attention is decomposed into a library's call.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER:
        return sdpa_kernel(ORDER, set_priority=True)
    return nullcontext()
