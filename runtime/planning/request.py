"""Requests for a video: `prepare` checks one without reading weights, and makes a `Job` of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from plugins.errors import UserError
from runtime.device.threads import Cores
from runtime.engines.compiled import fit
from runtime.planning.compute import (
    choose_denoiser,
    choose_dtype,
    choose_threads,
    fastest_dtype,
    searchable,
)
from runtime.planning.job import Job, as_source, as_start, check_names
from runtime.planning.length import length_of
from runtime.planning.plan import check_cache
from runtime.planning.start import StartClip
from runtime.prompts.schedule_file import ScheduleEntry
from runtime.prompts.sources import PromptSource
from runtime.rollout.decoding import Decoding
from vmla.cli.options.device import choose_device, choose_text_device
from vmla.weights.checkpoint import SHIPPED, Checkpoint
from vmla.weights.locate import find_checkpoint


def prepare(
    prompts: str | PromptSource | Sequence[ScheduleEntry],
    checkpoint: str | Path | None,
    *,
    layout: str | None = None,
    minutes: float | None = None,
    seconds: float | None = None,
    chunks: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    device: str = "cpu",
    text_device: str = "auto",
    dtype: str = "auto",
    engine: Path | None = None,
    engines: Path | None = None,
    compiled: bool | None = False,
    precision: str | None = None,
    cache: str | None = None,
    decoder: Path | None = None,
    threads: int | None = None,
    processes: int = 1,
    start: Path | StartClip | None = None,
) -> tuple[Job, int]:
    """A job and the number of its frames, with all checked that can be checked without weights.

    Args:
        prompts: one for the whole video, those of a schedule in seconds, or a source of them.
        checkpoint: its folder or the name of a shipped one; the engine's own, or `sprites`, if None.
        layout: the layout that the checkpoint must have.
        minutes, seconds, chunks: the length; at most one of them, ten seconds if none is given.
        seed, steps: of the sampling; None takes the checkpoint's own number of steps.
        device, dtype: by name; `auto` is a GPU if there is one, and its own type; see also `choose_dtype`.
        text_device: of the text encoder, by name; `auto` is the model's.
        engine, engines: a folder made by `vmla-export`; without it, a folder of several to choose from.
        compiled: whether to compile the model's blocks; None does so where it pays, and in fp8.
        precision, cache: `fp8` for layers in float8, on a GPU, or a cache in it; None is that of `dtype`.
        decoder: a file of TAEHV's weights in place of the checkpoint's codec, or `NOTHING`: no frames.
        threads: CPU threads of denoiser and decoder together; one for each if None. processes: see `Job`.
        start: a video, an image or a folder of pictures to continue; a `StartClip` was checked before.

    Raises:
        UserError: for options that are impossible, or exclude one another.
    """
    opened, where, dtype = _open(checkpoint, layout, engine, device=device, dtype=dtype)
    check_names(opened.folder, engine, decoder)
    engines = searchable(engines, precision=precision, cache=cache, processes=processes)
    compute, reason = _type(dtype, where, opened, engines=engines, threads=threads)
    decoding = Decoding(checkpoint=opened, file=decoder, dtype=compute)
    count, frames = length_of(decoding, minutes=minutes, seconds=seconds, chunks=chunks)
    denoiser = choose_denoiser(
        opened, where, compute, chunks=count, engine=engine, engines=engines, compiled=compiled,
        precision=precision, cache=cache, processes=processes,
    )  # fmt: skip
    job = Job(
        prompts=as_source(prompts, decoding, count), checkpoint=opened, chunks=count, seed=seed,
        device=where, text_device=choose_text_device(text_device, where), dtype=compute, dtype_reason=reason,
        decoder_file=decoder, threads=choose_threads(threads), start=as_start(start, opened, count),
        sampler=opened.sampler() if steps is None else opened.sampler().with_steps(steps), **vars(denoiser),
    )  # fmt: skip
    return job, 0 if decoding.silent else frames


def _type(
    name: str, where: torch.device, checkpoint: Checkpoint, *, engines: Path | None, threads: int | None
) -> tuple[torch.dtype, str]:
    """The type that the model computes in, and why, where that was measured on as many threads as denoise.

    Raises:
        UserError: if a cache in that type does not fit into memory.
    """
    denoiser = Cores.of(choose_threads(threads), where, silent=False).denoiser or 1
    found, reason = choose_dtype(name, where, partial(fastest_dtype, checkpoint, engines, denoiser))
    check_cache(checkpoint.model_config(), found, where)
    return found, reason


def _open(
    checkpoint: str | Path | None, layout: str | None, engine: Path | None, *, device: str, dtype: str
) -> tuple[Checkpoint, torch.device, str]:
    """The checkpoint, the device and the name of the type that are asked for, or those that the engine needs.

    Raises:
        UserError: if there is no such checkpoint or device, or its layout is not the one asked for.
    """
    if engine is None:
        opened = find_checkpoint(SHIPPED if checkpoint is None else checkpoint)
    else:
        opened, device, dtype = fit(engine, checkpoint, device=device, dtype=dtype)
    own = opened.model_config().layout
    if layout not in (None, own):
        raise UserError(f"checkpoint {opened.folder} has layout {own}; name one with {layout}")
    return opened, choose_device(device), dtype
