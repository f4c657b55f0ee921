"""The measurements of `vmla-bench gpu`, most valuable first; each yields its results piece by piece.

The same code runs on a CPU at small shapes, where the tests run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import checks as gpu_checks
from bench.gpu import chunks, layers
from bench.gpu.context import Context, Measurement, Pieces
from bench.gpu.fp8 import drift, fp8, long_window
from bench.gpu.profile import profile
from bench.gpu.training import STAGES as TRAINED
from bench.gpu.training import stage_steps
from bench.harness.engine_arms import failing
from bench.harness.memory_use import Peak
from bench.harness.subject import steady
from bench.speed.memory import BATCHES, LAYOUTS, compared, measured_cache, streams
from vmla.cache import CacheSpec
from vmla.config import Layout
from vmla.train.recipes.from_checkpoint import distillation_recipe


def memory(context: Context) -> Pieces:
    """The cache of both layouts, measured, and streams that fit: by arithmetic, and by allocating them."""
    context.close_bench()
    caches: dict[str, dict[str, Any]] = {
        layout: measured_cache(replace(context.config, layout=layout), torch.bfloat16, context.device)
        for layout in LAYOUTS
    }
    gpu = context.device.type == "cuda"  # tests on a CPU count as if it were an 80 GiB GPU
    total = torch.cuda.get_device_properties(context.device).total_memory if gpu else 80 << 30
    yield {
        "caches": caches,
        "compared": compared(caches),
        "streams": streams(caches, context.config, total, torch.bfloat16.itemsize),
        "allocated": {layout: sum(1 for _ in _caches(context, layout)) for layout in LAYOUTS},
    }
    for layout in LAYOUTS:
        for row in _chunk_peaks(context, layout):
            yield {"passes": [row]}


def _chunk_peaks(context: Context, layout: Layout) -> Iterator[dict[str, Any]]:
    """The most that a rollout of a growing batch holds beyond weights: buffers, cache, activations."""
    engine = context.engine(replace(context.config, layout=layout), compiled=False)
    for batch in BATCHES:
        peak = Peak(context.device)
        steady(engine, context.sampler, batch=batch, graphs=False)
        yield {"layout": layout, "batch": batch, "peak_bytes": peak.bytes()}


def _caches(context: Context, layout: Layout) -> Iterator[Tensor]:
    """Caches of one video each, until the device's memory is full."""
    kept: list[Tensor] = []
    shape = CacheSpec.of(replace(context.config, layout=layout))
    while len(kept) < context.most_streams:
        try:
            kept.append(shape.allocate(1, dtype=torch.bfloat16, device=context.device))
        except torch.OutOfMemoryError:
            return
        yield kept[-1]


def training(context: Context) -> Pieces:
    """Steps of every stage that fits one GPU whole, by the recipe of the shape's name."""
    context.close_bench()
    recipe = distillation_recipe(context.name)
    for name, steps in TRAINED.items():
        row, refusal = failing(partial(stage_steps, recipe, name, context.device, steps=steps))
        yield {"rows": [{"stage": name, "refused": refusal} if refusal else row]}
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


MEASUREMENTS = (
    Measurement(name="environment", seconds=5, run=gpu_checks.environment),
    Measurement(name="profile", seconds=60, run=profile),
    Measurement(name="peaks", seconds=10, run=layers.peaks),
    Measurement(name="items", seconds=110, run=chunks.items),
    Measurement(name="windows", seconds=110, run=chunks.windows),
    Measurement(name="fp8", seconds=95, run=fp8),
    Measurement(name="aoti", seconds=90, run=chunks.packaged),
    Measurement(name="fp8_long", seconds=30, run=long_window),
    Measurement(name="drift", seconds=90, run=drift),
    Measurement(name="checks", seconds=30, run=gpu_checks.checks),
    Measurement(name="chunk", seconds=45, run=chunks.chunk),
    Measurement(name="kernels", seconds=40, run=layers.attention_kernels),
    Measurement(name="block", seconds=10, run=layers.block),
    Measurement(name="graphs", seconds=30, run=chunks.graphs),
    Measurement(name="compile", seconds=40, run=chunks.compiled),
    Measurement(name="memory", seconds=20, run=memory),
    Measurement(name="training", seconds=150, run=training),
    Measurement(name="tests", seconds=100, run=gpu_checks.tests),
)
"""Most valuable first, because a machine may be available for a few minutes only."""
BY_NAME = {each.name: each for each in MEASUREMENTS}
