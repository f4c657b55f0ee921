"""Measurements of float8: its products, whole chunks against the type that it replaces, and its drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
from runtime.cli.verify.engine import latents_of, prompts, relative_error, second_chunk, single_pass
from runtime.engines.base import EagerEngine
from runtime.engines.optimizations import Optimizations
from vmla.cache import CacheSpec

WIDE_ATTENTION = Optimizations(fp8_attention=False)
ARMS: dict[str, dict[str, Any]] = {
    "fp8": {"fp8": True, "optimizations": WIDE_ATTENTION},
    "fp8, attention too if cuDNN's is taken": {"fp8": True},
    "fp8, queries wide": {"fp8": True, "optimizations": replace(WIDE_ATTENTION, fp8_queries=False)},
    "fp8, cache in fp8": {"fp8": True, "optimizations": WIDE_ATTENTION, "fp8_cache": True},
    "cache in fp8": {"fp8_cache": True},
    "fp8, products apart": {"fp8": True, "optimizations": Optimizations(joined=False)},
}
"""Arguments of an engine by its name in tables; a new arm is one entry. Queries in the wide type have two
kernels a layer fewer, because all of attention's products are joined then; products apart have two more."""
DRIFTING: dict[str, dict[str, Any]] = {
    "{wide}": {"compiled": False},
    "{wide}, compiled": {"compiled": True},
    "{wide}, cache in fp8": {"compiled": False, "fp8_cache": True},
    "fp8": {"compiled": False, "fp8": True},
    "fp8, compiled": {"compiled": True, "fp8": True},
    "fp8, cache in fp8, compiled": {"compiled": True, "fp8": True, "fp8_cache": True},
}
"""The same for rollouts, where {wide} stands for the device's own type. Compiled arms are left out on a CPU,
where nothing is compiled."""


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
    errors = _pass_errors(engine, reference)
    return {
        "median_ms": percentile(pair.other, 50),
        "wide_median_ms": percentile(pair.baseline, 50),
        "time_over_wide": pair.typical,
        "spread": pair.spread,
        **{f"error_{name}": error for name, error in errors.items()},
        "samples_ms": pair.other,
        "baseline_samples_ms": pair.baseline,
    }


def long_window(context: Context) -> Pieces:
    """Three rates in float8 at the window of 21 latent frames."""
    config = context.windows[1]
    keys = CacheSpec.of(config).positions * config.tokens_per_frame
    rates, refusal = failing(lambda: three_rates(context, config, 1, fp8=True))
    row = {"keys": keys, "batch": 1, "precision": FLOAT8}
    yield {"rows": [{**row, **({"refused": refusal} if refusal else rates)}]}


def _pass_errors(engine: EagerEngine, reference: EagerEngine) -> dict[str, float]:
    """Errors in one pass of a half-filled window, as `single_pass` finds them.

    Nothing compiled runs in such a window; `drift` shows what compiling changes.
    A cache in float8 is packed from the same entries; those that the pass returns are packed too, so only the
    velocity can be compared.
    """
    if engine.cache_dtype == engine.dtype:
        return single_pass(engine, reference, 1)
    wanted, inputs = (
        second_chunk(reference, 1, one.encode_prompt(prompts(1)), dtype=one.dtype)
        for one in (reference, engine)
    )
    velocity, _ = engine.step(inputs._replace(cache=engine.as_cached(inputs.cache)))
    return {"velocity": relative_error(velocity, reference.step(wanted)[0])}


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
        name.format(wide=context.narrow): context.engine(**settings)
        for name, settings in DRIFTING.items()
        if context.compiles or not settings["compiled"]
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
