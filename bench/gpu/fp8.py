"""Measurements of float8: its products, whole chunks against the type that it replaces, and its drift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.chunks import three_rates
from bench.gpu.context import Context, Pieces
from bench.gpu.layers import products
from bench.harness.engine_arms import failing
from bench.harness.paired_timing import WaitingClock, paired, percentile
from bench.harness.peaks import FLOAT8, clock_for, measured, scaled_product
from bench.harness.subject import steady
from plugins.fp8.product import FAST_ACCUMULATION
from runtime.cli.verify.engine import latents_of, relative_error, single_pass
from runtime.engines.base import EagerEngine

ARMS: dict[str, dict[str, Any]] = {
    "fp8": {"fp8": True},
    "fp8, queries wide": {"fp8": True, "fp8_queries": False},
    "fp8, products apart": {"fp8": True, "joined": False},
}
"""Queries in the wide type have two kernels a layer fewer, because all of attention's products are joined
then; products apart have two more."""


def fp8(context: Context) -> Pieces:
    """Compare chunks with and without float8 layers, a layer's products, and both ways to accumulate."""
    yield {"fast_accumulation": FAST_ACCUMULATION}
    wide = steady(context.engine(), context.sampler)
    for name, change in ARMS.items():
        row, refusal = failing(lambda c=change: _chunks(context, wide, c))  # type: ignore[misc]
        yield {"rows": [{"engine": name, **({"refused": refusal} if refusal else row)}]}
    rates, refusal = failing(lambda: three_rates(context, context.config, 1, fp8=True))
    yield {"rates": {"refused": refusal} if refusal else rates}
    plain, narrow = (products(context, name) for name in (context.narrow, FLOAT8))
    ratios = {name: narrow[name]["per_second"] / plain[name]["per_second"] for name in plain}
    yield {"products": narrow, "wide": plain, "times_as_fast": ratios}
    for name in plain:
        for fast in (True, False):
            yield {"accumulation": [_accumulated(context, name, fast)]}


def _chunks(context: Context, wide: Any, change: dict[str, Any]) -> dict[str, Any]:
    """A chunk with `change` in turns with `wide`, and its error in one pass, beside that of the wide type."""
    engine = context.engine(**change)
    chunk, clock = steady(engine, context.sampler), WaitingClock(context.device)
    pair = paired(lambda _: wide(), lambda _: chunk(), clock, rounds=context.rounds, warm_up=1)
    reference = context.engine(compiled=False, dtype=torch.float32)
    errors = single_pass(engine, reference, 1)
    return {
        "median_ms": percentile(pair.other, 50),
        "wide_median_ms": percentile(pair.baseline, 50),
        "time_over_wide": pair.typical,
        "spread": pair.spread,
        **{f"error_{name}": error for name, error in errors.items()},
        "samples_ms": pair.other,
        "baseline_samples_ms": pair.baseline,
    }


def _accumulated(context: Context, name: str, fast: bool) -> dict[str, Any]:
    """Rate of the layer's product `name`, and its error against the same product in float32."""
    m, n, k = context.products()[name]
    generator = torch.Generator(context.device).manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator, device=context.device) for rows in (m, n))
    with torch.inference_mode():
        call = scaled_product(a, b, fast=fast)
        rate = measured(call, 2.0 * m * n * k, clock_for(context.device), 2 * context.rounds)
        error = relative_error(call(), a @ b.t())
    return {"product": name, "fast": fast, "error": error, **rate.as_dict()}


def drift(context: Context) -> Pieces:
    """How far rollouts of the same noise come apart from float32, chunk by chunk, on random weights."""
    engines = {
        context.narrow: context.engine(compiled=False),
        "fp8": context.engine(compiled=False, fp8=True),
    }
    reference = _rollout(context, context.engine(compiled=False, dtype=torch.float32))
    rollouts = {name: _rollout(context, engine) for name, engine in engines.items()}
    worst = dict.fromkeys(rollouts, 0.0)
    for number, wanted in enumerate(reference):
        errors = {name: relative_error(next(made), wanted) for name, made in rollouts.items()}
        worst = {name: max(worst[name], error) for name, error in errors.items()}
        yield {"rows": [{"chunk": number, **errors}], "worst": worst}


def _rollout(context: Context, engine: EagerEngine) -> Iterator[Tensor]:
    return latents_of(engine, context.sampler, 1, context.drift_chunks)
