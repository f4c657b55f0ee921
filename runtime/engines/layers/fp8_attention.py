"""Attention of full windows in float8 by cuDNN, for the eager model and its compiled blocks on a GPU.

Taken where cuDNN's frontend is installed, if it was right on random inputs and faster than attention in the
model's type when the engine started, on this device and for windows of this size; all other windows attend as
they did. What was decided is one line in the log, and which form was faster is kept for the processes that
follow (`runtime.device.timed_choices`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from plugins.fp8.attention import AttendToCodes, fp8_attention
from plugins.fp8.attention_choice import checked, is_faster, random_inputs
from plugins.fp8.cudnn_attention import AttentionSizes, attend, unfit
from plugins.operator import dense_attention
from plugins.triton.split_kv import Timer
from runtime.device.timed_choices import kept_choice, machine
from vmla.attention import AnyWindow
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.fused_attention import attending
from vmla.transformer import VideoMLA

FAILURES = (ImportError, RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError, KeyError)
"""What the trial may raise: cuDNN refuses a graph, or its frontend has another interface than we know."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fp8Attention:
    """Attends in float8 to full windows of `sizes`, and to others as the window itself does."""

    sizes: AttentionSizes
    form: AttendToCodes

    def __call__(self, window: AnyWindow, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Window.attend`."""
        rows = (x.transpose(1, 2) for x in (query, keys, values))
        if getattr(window, "full", False) and AttentionSizes.of(*rows) == self.sizes:
            return fp8_attention(query, keys, values, self.form)
        return window.attend(query, keys, values)


def with_fp8_attention(
    model: VideoMLA, *, dtype: torch.dtype, device: torch.device, compiled: bool, timer: Timer,
    kept: Path | None = None,
) -> VideoMLA:  # fmt: skip
    """A shallow copy of `model`, sharing all else, whose full windows attend in float8; or `model` itself.

    Args:
        model: with joined products (`vmla.fused_attention`); windows of one video, full, are checked.
        dtype, device: what it computes in, and where.
        compiled: whether its blocks will be compiled, so that compiled forms are what is timed.
        timer: of calls on `device`.
        kept: the file that keeps which form was faster (`runtime.device.timed_choices`).

    Raises:
        UserError: if `kept` is damaged.
    """
    sizes = full_window(model.config)
    reason = unfit(sizes.width, sizes.deep, device)
    if reason is None:
        reason = _objection(sizes, attend, dtype=dtype, device=device, compiled=compiled, timer=timer,
                            kept=kept)  # fmt: skip
    if reason is not None:
        log.warning("attention stays in %s: %s", str(dtype).removeprefix("torch."), reason)
        return model
    log.info("attention of full windows runs in fp8, by cuDNN")
    return cast(VideoMLA, attending(model, Fp8Attention(sizes, attend)))


def full_window(config: ModelConfig) -> AttentionSizes:
    """The sizes of attention to a full window of one video."""
    spec = CacheSpec.of(config)
    own = spec.chunk * spec.tokens_per_frame
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    return AttentionSizes(
        batch=1,
        heads=config.num_attention_heads,
        queries=own,
        keys=own + spec.slots * spec.tokens_per_frame,
        width=width,
        deep=config.inner_dim // config.num_attention_heads,
    )


@torch.inference_mode()
def _objection(
    sizes: AttentionSizes, form: AttendToCodes, *, dtype: torch.dtype, device: torch.device, compiled: bool,
    timer: Timer, kept: Path | None,
) -> str | None:  # fmt: skip
    """Why `form` is not taken after it was tried, or None if it is right and faster."""
    inputs = random_inputs(sizes, dtype=dtype, device=device)

    def in_fp8(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return fp8_attention(query, keys, values, form)

    try:
        fault = checked(*inputs, form).fault()
        if fault is not None:
            return f"cuDNN's attention in fp8 is wrong here: {fault}"
        narrow = torch.compile(in_fp8) if compiled else in_fp8
        name = f"{machine(device)}, {dtype}, {tuple(sizes)}, {'compiled' if compiled else 'eager'}"
        faster = kept_choice(
            kept, "fp8_attention", name, lambda: is_faster(narrow, dense_attention, inputs, timer)
        )
    except FAILURES as error:
        return f"cuDNN's attention in fp8 failed: {_first_line(error)}"
    return None if faster else "cuDNN's attention in fp8 is not clearly faster here"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
