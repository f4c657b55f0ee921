"""Measurements below a whole pass: products, kernels, a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import Context, Pieces
from bench.harness import operation_counts as counting
from bench.harness.paired_timing import WaitingClock, paired, percentile
from bench.harness.peaks import FLOAT8, clock_for, machine_peaks, product
from bench.harness.subject import random_model
from bench.speed import kernels
from vmla.config import Layout
from vmla.flops import PassCost


def peaks(context: Context) -> Pieces:
    """Matrix and copy peaks, and the rates of the model's own products."""
    cuda = context.device.type == "cuda"
    names = ("bf16", "fp16", "fp32", FLOAT8) if cuda else ("fp32", "bf16")
    context.peaks = machine_peaks(context.device, names, rounds=context.rounds)
    yield context.peaks
    yield {"products": products(context, context.narrow)}


def products(context: Context, precision: str) -> dict[str, Any]:
    """Rates of the model's own products in `precision`."""
    clock = clock_for(context.device)
    with torch.inference_mode():
        return {
            name: product(
                precision, *sizes, clock=clock, device=context.device, rounds=2 * context.rounds
            ).as_dict()
            for name, sizes in context.products().items()
        }


def attention_kernels(context: Context) -> Pieces:
    """Every backend of attention and expansion at this window and, on a GPU, at a long one."""
    clock = clock_for(context.device)
    shapes = [context.attention]
    if context.device.type == "cuda":
        shapes.append(replace(context.attention, keys=21 * context.config.tokens_per_frame))
    with torch.inference_mode():
        for group in kernels.groups(context.device, shapes):
            for row in kernels.measured(group, clock, context.rounds, _tera(context.peaks)):
                yield {"rows": [row]}


def _tera(found: dict[str, Any]) -> dict[str, float]:
    """Peaks by PyTorch's names of the types, in TFLOP/s."""
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", FLOAT8: "float8_e4m3fn"}
    return {names[name]: rate["per_second"] / 1e12 for name, rate in found["matrix"].items()}


def block(context: Context) -> Pieces:
    """One layer in each form against the per-head one: time, launches, rate."""
    # Four times the rounds below, because a block takes a small part of a chunk's time.
    clock, baseline = WaitingClock(context.device), _block_call(context, "mha", absorbed=False)
    forms = {"mha": baseline, "mla": _block_call(context, "mla", absorbed=False)}
    forms["absorbed"] = _block_call(context, "mla", absorbed=True)
    with torch.inference_mode():
        for name, call in forms.items():
            pair = paired(lambda _: baseline(), lambda _, c=call: c(), clock, rounds=4 * context.rounds)  # type: ignore[misc]
            form = "absorbed" if name == "absorbed" else "expanded"
            config = replace(context.config, layout="mha" if name == "mha" else "mla")
            flops = PassCost(config=config, form=form).layer_flops()  # type: ignore[arg-type]
            yield {"rows": [{
                "form": name,
                "median_ms": percentile(pair.other, 50),
                "time_over_mha": pair.typical,
                "spread": pair.spread,
                "flops_per_second": flops / percentile(pair.other, 50) * 1e3,
                "launches": counting.launches(call, context.device),
                "samples_ms": pair.other,
                "baseline_samples_ms": pair.baseline,
            }]}  # fmt: skip


def _block_call(context: Context, layout: Layout, *, absorbed: bool) -> Callable[[], object]:
    """A block of a one-layer model on random activations, as `VideoMLA.forward` calls it."""
    model = random_model(replace(context.config, layout=layout, num_layers=1), device=context.device.type)
    model = model.to(context.dtype)
    inputs = counting.pass_inputs(model.config)
    _, timestep, text_kv, cache, slots, own = (tensor.to(context.device) for tensor in inputs)
    window = model._window(slots, own, full=not absorbed)
    _, modulation = model.condition_embedder(timestep)
    x = torch.randn(1, context.attention.queries, context.config.inner_dim, device=context.device)
    parts: tuple[Tensor, ...] = tuple(t.to(context.dtype) for t in (x, modulation, text_kv[0], cache[0]))
    return lambda: model.blocks[0](*parts, window, absorbed)
