"""How an engine in PyTorch lays out a model for the machine it runs on, and what of that can be left out.

Engines do all of it by default. Benchmarks leave one part out to measure what it gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from runtime.engines.layers.fp8_attention import with_fp8_attention
from runtime.engines.layers.fp8_linear import in_fp8, quantisable
from runtime.engines.layers.gelu_epilogue import gelu_in_products
from runtime.engines.layers.packed_linear import packable, packed
from runtime.engines.timing.attention_waves import time_waves
from runtime.engines.timing.key_splits import event_timer
from vmla.attention import LatentAttention
from vmla.fused_attention import FusedLatentAttention, attending, fused
from vmla.transformer import VideoMLA


@dataclass(frozen=True, kw_only=True)
class Optimizations:
    """What is done to be faster; results change by rounding alone, in float8 to its codes.

    Products are joined on a CPU too; the rest is for a GPU.
    """

    joined: bool = True
    """Attention's products are joined (`vmla.fused_attention`)."""
    attention: type[FusedLatentAttention] = FusedLatentAttention
    """The form of attention with joined products; others are for measuring a part of it."""
    gelu_in_product: bool = True
    """The feed-forward's first product applies bias and GELU itself
    (`runtime.engines.layers.gelu_epilogue`)."""
    waves: bool = True
    """Attention to full windows is cut into whole waves where the blocks are compiled and a clock says that
    it is faster (`runtime.engines.timing.attention_waves`)."""
    fp8_queries: bool = True
    """In float8, attention's query layers compute in it too; they are not joined with layers that do not."""
    fp8_attention: bool = True
    """In float8, full windows attend in it too, where cuDNN's frontend is there and is right and faster
    (`runtime.engines.layers.fp8_attention`)."""
    kept: Path | None = None
    """The file that keeps what clocks decided (`runtime.device.timed_choices`)."""


ALL = Optimizations()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how an engine computes."""

    device: torch.device
    dtype: torch.dtype
    absorbed: bool = False
    compiled: bool = False
    """Whether the blocks will be compiled."""
    fp8: bool = False
    processes: int = 1
    """Number of processes that share a chunk's tokens."""


def optimized(model: VideoMLA, place: Place, how: Optimizations) -> VideoMLA:
    """A shallow copy of `model`, sharing what it can, with its weights laid out for `place`."""
    on_gpu, packs = place.device.type == "cuda", packable(place.device, place.dtype)
    rows = model.config.chunk * model.config.tokens_per_frame // place.processes

    def joined(plain: LatentAttention) -> nn.Module:
        # Packed layer by layer: the joined weights of one alone are in memory beside the packed ones.
        made = how.attention(plain)
        return packed(made, rows) if packs else made

    if how.joined and not place.absorbed:
        apart = [name for name, _ in quantisable(model)] if place.fp8 and how.fp8_queries else ()
        model = cast(VideoMLA, fused(model, apart, form=joined))
        if on_gpu:
            model = _with_attention(model, place, how)
    if place.fp8:
        model = in_fp8(model)
    if on_gpu and how.gelu_in_product:
        model = cast(VideoMLA, gelu_in_products(model))
    return cast(VideoMLA, packed(model, rows)) if packs else model


def _with_attention(model: VideoMLA, place: Place, how: Optimizations) -> VideoMLA:
    """`model`, whose products are joined, with the attention to full windows that is fastest here.

    A model of whole heads has no joined products, and attends as it does; so does one of several processes.
    """
    if model.config.layout != "mla" or place.processes > 1:  # processes with a clock each could disagree
        return model
    if place.fp8 and how.fp8_attention:
        narrow = with_fp8_attention(
            model, dtype=place.dtype, device=place.device, compiled=place.compiled, timer=event_timer,
            kept=how.kept,
        )  # fmt: skip
        if narrow is not model:
            return narrow
    if not how.waves or not place.compiled:
        return model
    cut = time_waves(model.config, dtype=place.dtype, device=place.device, timer=event_timer, kept=how.kept)
    return model if cut is None else cast(VideoMLA, attending(model, cut))
