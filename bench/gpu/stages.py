"""The stages of `vmla-bench gpu`: each a function of what all share, giving figures for the document.

The same code runs on a CPU at small shapes, where the tests run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import checks as gpu_checks
from bench.gpu.context import Context
from bench.gpu.training import STAGES as TRAINED
from bench.gpu.training import stage_steps
from bench.harness import operation_counts as counting
from bench.harness.engine_arms import EngineArm, failing
from bench.harness.memory_use import Peak
from bench.harness.paired_timing import WaitingClock, paired, percentile
from bench.harness.peaks import FLOAT8, clock_for, machine_peaks, product
from bench.harness.subject import RandomText, random_model, steady
from bench.speed import kernels
from bench.speed.memory import BATCHES, LAYOUTS, compared, measured_cache, streams
from export.backends.aoti import AOTI
from runtime.engines.base import EagerEngine
from vmla.cache import CacheSpec
from vmla.config import Layout
from vmla.flops import Counted
from vmla.scheduler import Sampler
from vmla.train.recipes.from_checkpoint import distillation_recipe


@dataclass(frozen=True, kw_only=True)
class GpuStage:
    """One part of the run."""

    name: str
    seconds: float
    """It may take: not begun with less left."""
    run: Callable[[Context], dict[str, Any]]


def peaks(context: Context) -> dict[str, Any]:
    """Matrix and copy peaks, and the rates of the model's own products."""
    cuda = context.device.type == "cuda"
    names = ("bf16", "fp16", "fp32", FLOAT8) if cuda else ("fp32", "bf16")
    context.peaks = machine_peaks(context.device, names, rounds=context.rounds)
    return {**context.peaks, "products": _products(context, context.narrow)}


def fp8(context: Context) -> dict[str, Any]:
    """The model's products in float8 with a scale for each row, against the narrow type in the same stage."""
    wide, narrow = (_products(context, name) for name in (context.narrow, FLOAT8))
    ratios = {name: narrow[name]["per_second"] / wide[name]["per_second"] for name in wide}
    return {"products": narrow, "wide": wide, "times_as_fast": ratios, "error": gpu_checks.fp8_error(context)}


def _products(context: Context, precision: str) -> dict[str, Any]:
    clock = clock_for(context.device)
    with torch.inference_mode():
        return {
            name: product(
                precision, *sizes, clock=clock, device=context.device, rounds=2 * context.rounds
            ).as_dict()
            for name, sizes in context.products().items()
        }


def attention_kernels(context: Context) -> dict[str, Any]:
    """Every backend of attention and expansion at this window and, on a GPU, at a long one."""
    clock = clock_for(context.device)
    shapes = [context.attention]
    if context.device.type == "cuda":
        shapes.append(replace(context.attention, keys=21 * context.config.tokens_per_frame))
    with torch.inference_mode():
        rows = [
            row
            for group in kernels.groups(context.device, shapes)
            for row in kernels.measured(group, clock, context.rounds, _tera(context.peaks))
        ]
    return {"rows": rows}


def _tera(found: dict[str, Any]) -> dict[str, float]:
    """Peaks by PyTorch's names of the types, in TFLOP/s."""
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", FLOAT8: "float8_e4m3fn"}
    return {names[name]: rate["per_second"] / 1e12 for name, rate in found["matrix"].items()}


def block(context: Context) -> dict[str, Any]:
    """One layer in each form against the per-head one: time, launches, rate."""
    clock, baseline = WaitingClock(context.device), _block_call(context, "mha", absorbed=False)
    forms = {"mha": baseline, "mla": _block_call(context, "mla", absorbed=False)}
    forms["absorbed"] = _block_call(context, "mla", absorbed=True)
    rows = []
    with torch.inference_mode():
        for name, call in forms.items():
            pair = paired(lambda _: baseline(), lambda _, c=call: c(), clock, rounds=4 * context.rounds)  # type: ignore[misc]
            form = "absorbed" if name == "absorbed" else "expanded"
            config = replace(context.config, layout="mha" if name == "mha" else "mla")
            flops = Counted(config=config, form=form).layer_flops()  # type: ignore[arg-type]
            rows.append({
                "form": name,
                "median_ms": percentile(pair.other, 50),
                "time_over_mha": pair.typical,
                "spread": pair.spread,
                "flops_per_second": flops / percentile(pair.other, 50) * 1e3,
                "launches": counting.launches(call, context.device),
                "samples_ms": pair.other,
                "baseline_samples_ms": pair.baseline,
            })  # fmt: skip
    return {"rows": rows}


def _block_call(context: Context, layout: Layout, *, absorbed: bool) -> Callable[[], object]:
    """A block of a one-layer model on random activations, as `VideoMLA.forward` calls it."""
    model = random_model(replace(context.config, layout=layout, num_layers=1), device=context.device.type)
    model = model.to(context.dtype)
    inputs = counting.pass_inputs(model.config)
    _, timestep, text_kv, cache, slots, own = (tensor.to(context.device) for tensor in inputs)
    window = model._window(slots, own, full=True)
    _, modulation = model.condition_embedder(timestep)
    x = torch.randn(1, context.attention.queries, context.config.inner_dim, device=context.device)
    parts: tuple[Tensor, ...] = tuple(t.to(context.dtype) for t in (x, modulation, text_kv[0], cache[0]))
    return lambda: model.blocks[0](*parts, window, absorbed)


def chunk(context: Context) -> dict[str, Any]:
    """Whole chunks eagerly, in every layout and form, against per-head eager."""
    rows = [_row(context, name) for name in ("eager-mha", "eager-mla", "absorbed")]
    return {"baseline": context.eager_rows[0], "rows": rows}


def _row(context: Context, engine: str) -> dict[str, Any]:
    return context.open_bench().row(EngineArm(engine=engine, precision=context.narrow))


def compiled(context: Context) -> dict[str, Any]:
    """Time a whole chunk with its blocks compiled by `torch.compile`."""
    return {"rows": [_row(context, "compile")]}


def packaged(context: Context) -> dict[str, Any]:
    """A chunk through an AOTInductor package, built here."""
    return {"rows": [_row(context, AOTI.name)]}


def graphs(context: Context) -> dict[str, Any]:
    """A chunk of the rollout with its CUDA graphs against the same without: time, launches, equality."""
    rows = []
    for layout in LAYOUTS:
        engine = _engine(context, layout)
        eager, replay = (steady(engine, Sampler(), graphs=graphs) for graphs in (False, True))
        wanted = eager()
        error = float((replay() - wanted).abs().max() / wanted.abs().max())
        clock = WaitingClock(context.device)
        pair = paired(lambda _, e=eager: e(), lambda _, r=replay: r(), clock, rounds=2 * context.rounds)  # type: ignore[misc]
        frames = 4 * context.config.chunk
        rows.append({
            "layout": layout,
            "frames_per_second": frames / percentile(pair.other, 50) * 1e3,
            "eager_frames_per_second": frames / percentile(pair.baseline, 50) * 1e3,
            "time_over_eager": pair.typical,
            "spread": pair.spread,
            "launches": counting.launches(replay, context.device),
            "eager_launches": counting.launches(eager, context.device),
            "host_reads": counting.host_reads(eager, context.device),
            "error": error,
            "samples_ms": pair.other,
            "baseline_samples_ms": pair.baseline,
        })  # fmt: skip
    return {"rows": rows}


def _engine(context: Context, layout: Layout) -> EagerEngine:
    """Random weights behind the face that the rollout knows."""
    model = context.model(layout)
    return EagerEngine(model, RandomText(model.config), device=context.device, dtype=context.dtype)


def memory(context: Context) -> dict[str, Any]:
    """The cache of both layouts, measured, and streams that fit: by arithmetic, and by allocating them."""
    caches: dict[str, dict[str, Any]] = {
        layout: measured_cache(replace(context.config, layout=layout), torch.bfloat16, context.device)
        for layout in LAYOUTS
    }
    gpu = context.device.type == "cuda"
    total = torch.cuda.get_device_properties(context.device).total_memory if gpu else 80 << 30
    return {
        "caches": caches,
        "compared": compared(caches),
        "streams": streams(caches, context.config, total, torch.bfloat16.itemsize),
        "allocated": {layout: sum(1 for _ in _caches(context, layout)) for layout in LAYOUTS},
        "passes": [row for layout in LAYOUTS for row in _chunk_peaks(context, layout)],
    }


def _chunk_peaks(context: Context, layout: Layout) -> Iterator[dict[str, Any]]:
    """The most that a rollout of a growing batch holds beyond weights: buffers, cache, activations."""
    engine = _engine(context, layout)
    for batch in BATCHES:
        peak = Peak(context.device)
        steady(engine, Sampler(), batch=batch, graphs=False)
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


def training(context: Context) -> dict[str, Any]:
    """Steps of every stage that fits one GPU whole, by the recipe of the shape's name."""
    rows, recipe = [], distillation_recipe(context.name)
    for name, steps in TRAINED.items():
        row, refusal = failing(partial(stage_steps, recipe, name, context.device, steps=steps))
        rows.append({"stage": name, "refused": refusal} if refusal else row)
        context.save(training={"rows": rows})
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
    return {"rows": rows}


STAGES = (
    GpuStage(name="environment", seconds=5, run=gpu_checks.environment),
    GpuStage(name="peaks", seconds=10, run=peaks),
    GpuStage(name="checks", seconds=15, run=gpu_checks.checks),
    GpuStage(name="memory", seconds=15, run=memory),
    GpuStage(name="chunk", seconds=50, run=chunk),
    GpuStage(name="graphs", seconds=40, run=graphs),
    GpuStage(name="kernels", seconds=20, run=attention_kernels),
    GpuStage(name="block", seconds=10, run=block),
    GpuStage(name="fp8", seconds=5, run=fp8),
    GpuStage(name="training", seconds=150, run=training),
    GpuStage(name="compile", seconds=60, run=compiled),
    GpuStage(name="aoti", seconds=160, run=packaged),
    GpuStage(name="tests", seconds=100, run=gpu_checks.tests),
)
"""In their order of value; memory while nothing else is held, and late what takes minutes."""
