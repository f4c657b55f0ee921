"""The one place where a backend is chosen: plain PyTorch, SDPA, matrix products or Triton.

On a GPU `auto` takes Triton. No library offers attention in latent space (keys wider than values) or float8
inputs; where Triton cannot take these, `auto` warns once with the reason. Triton is faster than PyTorch in
expanded attention with a mask and in the expansion itself (1.9 and 2.5 times on an H200: LOG.md, 2026-11-27);
what it cannot take goes to SDPA without a warning. Its kernels have no backward, so whatever needs a gradient
takes SDPA. A CPU takes SDPA too, or matrix products in bfloat16 (`plugins.matmul`).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from plugins import matmul
from plugins.checks import FLOAT8
from plugins.triton.tiles import halves

Backend = Literal["auto", "reference", "sdpa", "matmul", "triton"]
Chosen = Literal["reference", "sdpa", "matmul", "triton"]

KERNEL_TYPES = {
    "expand": (torch.bfloat16, torch.float16),
    "mla_attention": (torch.bfloat16, torch.float16, FLOAT8),
    "mla_attention_absorbed": (torch.bfloat16, torch.float16, FLOAT8),
}
"""Dtypes of the Triton kernels."""

log = logging.getLogger(__name__)


def choose(operator: str, wanted: str, inputs: tuple[Tensor, ...]) -> Chosen:
    """Choose the backend for `inputs`, the first of which determines dtype and device.

    Raises:
        ValueError: if `wanted` does not exist, or is a backend that cannot take the inputs.
    """
    # Only `auto` falls back to another backend: one that is named computes, or is refused.
    if wanted == "reference":
        return "reference"
    if wanted == "sdpa":
        return "sdpa"
    first = inputs[0]
    if wanted == "matmul" and operator != "mla_attention":
        raise ValueError(f"vmla::{operator}: matmul is a backend of vmla::mla_attention alone")
    if wanted == "matmul" or (wanted == "auto" and operator == "mla_attention" and matmul.suits(first)):
        return "matmul"
    if wanted == "auto":
        if not _suits_kernels(first):
            return "sdpa"
        reason = unfit(operator, inputs)
        if reason is None:
            return "triton"
        if _needs_kernel(operator, first):
            _say_once(f"vmla::{operator} takes sdpa instead of triton: {reason}")
        return "sdpa"
    if wanted != "triton":
        known = ", ".join(get_args(Backend))
        raise ValueError(f"vmla::{operator}: no such backend: {wanted}; there are {known}")
    reason = unfit(operator, inputs)
    if reason is not None:
        raise ValueError(f"vmla::{operator}: triton cannot take this: {reason}")
    return "triton"


def unfit(operator: str, inputs: tuple[Tensor, ...], *, strided: bool = False) -> str | None:
    """Why Triton cannot compute this, or None if it can; `strided` for a kernel that reads any strides."""
    first = inputs[0]
    if not _installed():
        return 'triton is not installed; install it with: pip install "videomla[gpu]"'
    if first.device.type != "cuda" and not _interpreted():
        return f"its kernels run on a GPU, or on a CPU under TRITON_INTERPRET=1, and not on {first.device}"
    if first.dtype not in KERNEL_TYPES[operator]:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in KERNEL_TYPES[operator])
        return f"its kernels compute in {known}, and not in {str(first.dtype).removeprefix('torch.')}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return "its kernels have no backward, and a gradient is needed"
    if not strided and not all(x.is_contiguous() for x in inputs):
        return "its kernels read contiguous memory only"
    return _unfit_widths(operator, inputs)


def _unfit_widths(operator: str, inputs: tuple[Tensor, ...]) -> str | None:
    """Why a kernel has no tiles for the widths, or None if it has."""
    if operator == "mla_attention":
        widths = inputs[0].shape[-1], inputs[2].shape[-1]
        if any(halves(width) != (width, 0) for width in widths):
            return f"heads must be a power of two of at least 16 wide, not {widths[0]} and {widths[1]}"
    else:
        content = inputs[2].shape[1] if operator == "expand" else inputs[1].shape[-1] - 2 * inputs[3].shape[1]
        if operator == "expand" and content % 16:
            return f"the content width must be a multiple of 16, not {content}"
        if operator != "expand" and halves(content) is None:
            return f"the content width must be one or two powers of two of at least 16, not {content}"
    return None


def _suits_kernels(first: Tensor) -> bool:
    """Whether `auto` considers the Triton kernels for this input: on a GPU only."""
    return first.device.type == "cuda"


def _needs_kernel(operator: str, first: Tensor) -> bool:
    """Whether no library supports it: float8, and keys wider than values."""
    return operator == "mla_attention_absorbed" or first.dtype == FLOAT8


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton was asked to interpret its kernels on the CPU."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@cache
def _say_once(message: str) -> None:
    log.warning(message)
