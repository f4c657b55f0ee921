"""How a video is computed: device, type, engine, and the threads and processes that share the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from plugins.errors import UserError
from runtime.device.threads import using
from runtime.engines.block_compiler import choose_compiled
from runtime.engines.compiled import find_engine
from runtime.engines.layers.fp8_cache import choose_fp8_cache
from runtime.engines.layers.fp8_linear import choose_fp8
from runtime.engines.sequence_parallel import check_divisible
from runtime.engines.timing.step_timing import seconds_by_type
from vmla.cli.machine import check_threads
from vmla.cli.options.device import FASTEST
from vmla.cli.options.names import unknown_name
from vmla.config import ModelConfig
from vmla.weights.checkpoint import Checkpoint

Measure = Callable[[ModelConfig, tuple[torch.dtype, ...]], dict[torch.dtype, float]]
"""Gives the seconds of a step in each of some types."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLEARLY = 1.2
"""How many times as fast as float32 bfloat16 has to be: its videos drift away from those of float32, by 0.14
of a chunk after twenty (`runtime.cli.verify.engine.ROLLOUT`), and timings repeat to a few per cent."""
THREADS = 2
"""The default: one denoises, one decodes. It is not the number of cores, because an operation that is split
among more threads rounds differently, and a seed would give another video on another machine."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Which denoiser runs, and its arithmetic; the fields are those of `Job` of the same names."""

    engine_folder: Path | None
    engine_reason: str
    compiled: bool
    fp8: bool
    fp8_cache: bool
    processes: int


def choose_denoiser(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, chunks: int, engine: Path | None,
    engines: Path | None, compiled: bool | None, precision: str | None, cache: str | None, processes: int,
) -> Denoiser:  # fmt: skip
    """The denoiser for a video of so many `chunks`; see `runtime.planning.request.prepare` for the options.

    In `engines` an engine is looked for that does as the other options ask; see `searchable`.

    Raises:
        UserError: for options that exclude one another, or that the device cannot fulfil.
    """
    fp8 = choose_fp8(precision, device, dtype, engine)
    folder, reason = look_up(checkpoint, device, dtype, engine, engines)
    return Denoiser(
        engine_folder=folder,
        engine_reason=reason,
        # fp8 compiles by default: only a fused kernel quantises its inputs without another pass over memory.
        compiled=choose_compiled((fp8 or None) if compiled is None else compiled, device, folder, chunks),
        fp8=fp8,
        fp8_cache=choose_fp8_cache(cache, checkpoint.model_config(), folder),
        processes=choose_processes(processes, checkpoint, folder, cache),
    )


def searchable(
    engines: Path | None, *, precision: str | None, cache: str | None, processes: int
) -> Path | None:
    """The folder `engines`, or None where no engine does as these options ask, so that none is looked for."""
    return None if precision or cache or processes > 1 else engines


def look_up(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype,
    engine: Path | None, engines: Path | None,
) -> tuple[Path | None, str]:  # fmt: skip
    """The engine asked for, or a fitting one in the folder `engines`, or None; and the reason, in words."""
    if engine is not None or engines is None:
        return engine, "as asked for"
    name = str(dtype).removeprefix("torch.")
    return find_engine(checkpoint, device=device.type, dtype=name, engines=engines)


def choose_dtype(
    name: str, device: torch.device, measured: Callable[[], tuple[torch.dtype, str]]
) -> tuple[torch.dtype, str]:
    """The type called `name`, and why, in words, where it was `measured`.

    `auto` is float32 on a CPU and bfloat16 elsewhere. It is never measured: the same seed gives the same
    video on all processors of one instruction set, and would not if a stopwatch chose the type, which may
    choose differently on a busy day. `fastest` asks for that. The sidecar records the type that came of it,
    and `--repeat` takes it from there.

    Raises:
        UserError: for another name.
    """
    if name == FASTEST and device.type == "cpu":
        return measured()
    if name in ("auto", FASTEST):
        return (torch.float32 if device.type == "cpu" else torch.bfloat16), ""
    if name not in DTYPES:
        raise unknown_name("dtype", name, ("auto", FASTEST, *DTYPES))
    return DTYPES[name], ""


def fastest_dtype(
    checkpoint: Checkpoint, engines: Path | None, threads: int, measure: Measure = seconds_by_type
) -> tuple[torch.dtype, str]:
    """The type in which the model denoises fastest on this CPU, float32 or bfloat16, and why, in words.

    Whole steps are timed, by `measure`, and not one product as for training: on a Zen 5 a large product takes
    a quarter of the time in bfloat16, but a chunk of `sprites` 1.02 of it (both in
    `bench/results/engines-sprites.json`), because float32 layers are laid out for the processor once and
    those of bfloat16 are not. float16 is not tried: its numbers end at 65,504, and that product took four
    times as long.

    Raises:
        UserError: if the checkpoint's config is not that of a model.
    """
    if engines is not None:
        engine, _ = find_engine(checkpoint, device="cpu", dtype="float32", engines=engines)
        if engine is not None:
            return torch.float32, "an engine computes in it"
    with using(threads):
        seconds = measure(checkpoint.model_config(), (torch.float32, torch.bfloat16))
    wide, narrow = seconds[torch.float32], seconds[torch.bfloat16]
    told = f"a step of two blocks took {1e3 * wide:.1f} ms in float32, {1e3 * narrow:.1f} ms in bfloat16"
    return (torch.bfloat16 if narrow * CLEARLY <= wide else torch.float32), told


def choose_threads(wish: int | None) -> int:
    """The number of CPU threads: `wish`, or the same on every machine.

    Raises:
        UserError: for less than one, or more than a machine has use for; tens of thousands would end the
            process.
    """
    if wish is not None and (type(wish) is not int or wish < 1):
        raise UserError(f"threads is {wish!r}; use a whole number, 1 or more")
    if wish is not None:
        check_threads(wish)
    return wish or THREADS


def choose_processes(processes: int, checkpoint: Checkpoint, engine: Path | None, cache: str | None) -> int:
    """How many processes compute each chunk together.

    Raises:
        UserError: for some that cannot share a frame's tokens, or would share an engine or a cache in float8.
    """
    if processes > 1 and engine is not None:
        raise UserError(f"{engine} runs in one process; leave --engine out, or --sequence-parallel")
    if processes > 1 and cache is not None:
        raise UserError("processes exchange entries that are not packed; leave --cache out")
    check_divisible(checkpoint.model_config().tokens_per_frame, processes)
    return processes
