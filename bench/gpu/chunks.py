"""Measurements of whole chunks: each item's gain, both windows with three kinds of FPS, engines, graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import Context, Pieces
from bench.harness import operation_counts as counting
from bench.harness.engine_arms import EngineArm, failing
from bench.harness.paired_timing import Pair, WaitingClock, paired, percentile
from bench.harness.subject import steady, steady_rollout
from bench.speed.memory import LAYOUTS
from export.backends.aoti import AOTI
from plugins.errors import UserError
from runtime.engines.base import EagerEngine
from runtime.outputs.writer import to_pixels
from runtime.rollout.decoding import CodecDecoder
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.transformer import StepInputs
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv

FRAMES_PER_LATENT = 4
"""Pixel frames of a latent frame, in every codec."""
BATCHES = (1, 2)
"""Videos that are made at once."""
ITEMS: dict[str, dict[str, Any]] = {
    "A against A": {},
    "graphs": {"graphs": False},
    "compiled blocks": {"compiled": False},
    "a full window pays no mask": {"masked": True},
    "joined products": {"joined": False},
    "GELU in its product": {"gelu_in_product": False},
    "attention in waves": {"waves": False},
}
"""Features that users get by default on a GPU, each with the change that turns it off; chunks are timed with
and without. The arms that are cheapest to build come first: the last four compile the model again."""


class Masked(EagerEngine):
    """An engine that is never told that the window is full."""

    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """See `EagerEngine.step`; `held` is dropped."""
        return super().step(inputs)

    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """See `EagerEngine.entries`; `held` is dropped."""
        return super().entries(inputs)


def items(context: Context) -> Pieces:
    """Chunks with and without every item of `ITEMS`, timed in the order A B B A."""
    with_all = steady(context.engine(), context.sampler)
    for name, change in ITEMS.items():
        without, refusal = failing(lambda change=change: _without(context, change))  # type: ignore[misc]
        if refusal is None:
            pair, refusal = failing(lambda chunk=without: _pair(context, with_all, chunk))  # type: ignore[misc]
        row = {"item": name}
        yield {"rows": [{**row, "refused": refusal} if refusal else {**row, **_gain(pair)}]}


def _without(context: Context, change: dict[str, Any]) -> Callable[[], Tensor]:
    """A steady chunk with `change`, one of the values of `ITEMS`."""
    if "compiled" in change and not context.compiles:
        raise UserError("blocks are compiled on a GPU alone")
    if "masked" in change:
        return steady(context.engine(kind=Masked), context.sampler)
    graphs = change.get("graphs", True)
    settings = {name: value for name, value in change.items() if name != "graphs"}
    return steady(context.engine(**settings), context.sampler, graphs=graphs)


def _pair(context: Context, first: Callable[[], object], second: Callable[[], object]) -> Pair:
    clock = WaitingClock(context.device)
    return paired(lambda _: first(), lambda _: second(), clock, rounds=context.rounds, warm_up=1)


def _gain(pair: Pair) -> dict[str, Any]:
    """Times with and without an item."""
    return {
        "with_ms": percentile(pair.baseline, 50),
        "without_ms": percentile(pair.other, 50),
        "time_without_over_with": pair.typical,
        "spread": pair.spread,
        "samples_ms": pair.other,
        "baseline_samples_ms": pair.baseline,
    }


def windows(context: Context) -> Pieces:
    """Both windows, one video and two: frames per second of the denoiser, with the clean pass, and out."""
    for batch in BATCHES:
        for config in context.windows:
            keys = CacheSpec.of(config).positions * config.tokens_per_frame
            row = {"keys": keys, "batch": batch, "precision": context.narrow}
            found, refusal = failing(lambda c=config, b=batch: three_rates(context, c, b))  # type: ignore[misc]
            yield {"rows": [{**row, "refused": refusal} if refusal else {**row, **found}]}
            _free(context)


def three_rates(context: Context, config: ModelConfig, batch: int, **changes: Any) -> dict[str, Any]:
    """Three rates in frames per second, of all videos together, each with the samples that it comes from.

    For `frames_out` a decoder of TAEHV's size with random weights decodes each chunk, and its pixels are
    copied to main memory. Here both follow the chunk; `vmla-run` does both while the next chunk is denoised.
    """
    videos = steady_rollout(context.engine(config, **changes), context.sampler, batch=batch)
    decode = _tiny_decoder(context, config)

    def chunk() -> Tensor:
        latents = videos.denoise()
        videos.update_cache()
        return latents

    kinds: dict[str, Callable[[], object]] = {
        "denoiser": videos.denoise, "with_clean_pass": chunk, "frames_out": lambda: decode(chunk())
    }  # fmt: skip
    clock, found = WaitingClock(context.device), dict[str, Any]()
    for name, call in kinds.items():
        call()  # not timed: the first call loads kernels and allocates memory
        # Twice the rounds, because a round A B B A of the other measurements times each arm twice.
        samples = [clock.time(call) for _ in range(2 * context.rounds)]
        frames = batch * config.chunk * FRAMES_PER_LATENT
        found[f"{name}_fps"] = frames / percentile(samples, 50) * 1e3
        found[f"{name}_samples_ms"] = samples
    return found


def _tiny_decoder(context: Context, config: ModelConfig) -> Callable[[Tensor], object]:
    """Decodes the latents of a chunk with random weights of TAEHV's sizes, into pixels in main memory."""
    size = replace(TAEHV_CONFIGS["taew2_1"], latent_channels=config.in_channels)
    if context.name == "debug":
        size = replace(TAEHV_CONFIGS["debug"], latent_channels=config.in_channels)
    codec = Taehv(size).to(context.dtype).eval().requires_grad_(False)
    decoder = CodecDecoder(codec, context.device)
    return lambda latents: [to_pixels(frames) for frames in decoder.decode(latents)]


def chunk(context: Context) -> Pieces:
    """Whole chunks eagerly, in every layout and form, against per-head eager."""
    context.open_bench()
    yield {"baseline": context.eager_rows[0]}
    for name in ("eager-mha", "eager-mla", "absorbed"):
        yield {"rows": [_row(context, name)]}


def _row(context: Context, engine: str) -> dict[str, Any]:
    return context.open_bench().row(EngineArm(engine=engine, precision=context.narrow))


def compiled(context: Context) -> Pieces:
    """Time a whole chunk with its blocks compiled by `torch.compile`."""
    yield {"rows": [_row(context, "compile")]}


def packaged(context: Context) -> Pieces:
    """A chunk through an AOTInductor package, built here."""
    yield {"rows": [_row(context, AOTI.name)]}


def graphs(context: Context) -> Pieces:
    """A chunk of the rollout with its CUDA graphs against the same without: time, launches, equality."""
    for layout in LAYOUTS:
        engine = context.engine(replace(context.config, layout=layout), compiled=False)
        eager, replay = (steady(engine, context.sampler, graphs=graphs) for graphs in (False, True))
        wanted = eager()
        error = float((replay() - wanted).abs().max() / wanted.abs().max())
        clock = WaitingClock(context.device)
        pair = paired(lambda _, e=eager: e(), lambda _, r=replay: r(), clock, rounds=2 * context.rounds)  # type: ignore[misc]
        frames = FRAMES_PER_LATENT * context.config.chunk
        yield {"rows": [{
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
        }]}  # fmt: skip


def _free(context: Context) -> None:
    """Return unused memory to the device, before a larger arm."""
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
