"""After videos made without an engine: has one built in the background where that pays, or says how.

Videos that are made at once, by `--videos` or `--grid`, take turns at an engine for one video, so theirs is
the same engine.

An engine is never built while a video is being made: compiling would take the cores that make it. Nor may a
video switch to another engine midway: its frames would no longer be the same to the last bit. The build is
another process, at low priority, because nobody should wait for what only later videos need; whoever wants
to wait for it has `vmla-export build`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.registry import BACKENDS
from export.checks import ON_CPU
from export.engine.manifest import EAGER, engine_store
from plugins.documents.lock import is_locked
from plugins.errors import UserError
from runtime.cli.background import process
from runtime.cli.background.process import Starter
from runtime.cli.background.records import Builds, log_path, place_of, weight_bytes
from runtime.cli.background.worth import DenoiseTime, Estimate
from vmla.cli.terminal import say, warn
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import SHIPPED

if TYPE_CHECKING:
    from runtime.planning.job import Job

PRECISION = "fp32"
"""Of the engine: that of the model on a CPU, so that a video's pictures stay what they are."""
LONG_SECONDS = 60.0
"""Seconds of denoising from which an engine is worth a word, even where building it did not pay yet."""
LARGEST = 2**28
"""Bytes of weights of a model whose engine is built unasked, sixteen times those of `sprites`. That of a much
larger one was never built on a CPU, and may take memory and hours that nobody has agreed to."""
MODULE = "runtime.cli.background_build"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has just made, one video or several, and how."""

    job: Job
    """Of the first of them."""
    checkpoint: str
    """The name by which the user chose the checkpoint."""
    complete: bool
    """Whether all of them have their whole length."""
    spent: DenoiseTime
    """By all of them."""

    @property
    def seconds(self) -> float:
        """Seconds of video that were made, all together, of whole chunks."""
        latent = self.spent.chunks * self.job.checkpoint.model_config().chunk
        return latent * self.job.decoding.sizes().temporal_ratio / FRAMES_PER_SECOND


def after_run(options: Mapping[str, Any], job: Job, spent: DenoiseTime, *, complete: bool) -> None:
    """Do what `after_video` does if `vmla-run` chose what computed the videos, new ones; else nothing.

    Args:
        options: of `vmla-run`, by name.
        job, spent, complete: see `Finished`.

    Raises:
        UserError: as `after_video`.
    """
    if any(options[name] is not None for name in ("engine", "resume", "repeat")):
        return
    name = options["checkpoint"] or SHIPPED
    video = Finished(job=job, checkpoint=name, complete=complete, spent=spent)
    after_video(video, options["build_engine"], process.start_detached)


def after_video(video: Finished, wish: bool | None, start: Starter) -> None:
    """Have an engine for later videos built by `start`, or say how; nothing where none would be faster.

    Args:
        video: made by the PyTorch model, which the user did not ask for by name.
        wish: `--build-engine`, `--no-build-engine`, or None for neither: if this run would have repaid it.
        start: `runtime.cli.background.process.start_detached`.

    Raises:
        UserError: if one was asked for, and there is no folder to keep it in.
    """
    if video.job.engine_folder is not None:
        return
    if not is_faster(video.job):
        if wish:
            say("no engine is built: none is known to be faster for this model, dtype and device")
        return
    store, size = engine_store(), weight_bytes(video.job.checkpoint)
    estimate = Estimate.of(store, size)
    if wish and video.complete:
        if store is None:
            raise UserError("there is no home folder to keep engines in; set XDG_DATA_HOME")
        there = _engine_there(video.job, store)
        say(*_begin(video, store, estimate, start)) if there is None else say(f"{there} is there already")
        return
    if wish:
        say("no engine is built after a run that was stopped or failed")
    pays = estimate.repaid(video.spent.seconds) and size <= LARGEST and video.complete
    if wish is not None or store is None or not pays:
        say(*_hint(video, estimate))
        return
    try:
        say(*_unless_in_vain(video, store, estimate, start))
    except UserError as error:  # nobody asked for it, and the videos are there
        warn([str(error)])


def is_faster(job: Job) -> bool:
    """Whether an engine is known to be faster for `job`, and can be built on this machine.

    It is not on a GPU, if the model or its cache is narrower than float32, if the model's first chunk has
    another length, if several processes made the video, or if there is no C++ compiler.
    """
    known = job.device.type == "cpu" and str(job.dtype) == "torch.float32"
    if not known or job.fp8_cache or job.processes > 1 or job.checkpoint.model_config().first_chunk:
        return False
    return BACKENDS[ON_CPU["backend"]].offer("no GPU", None) is not None


def _unless_in_vain(video: Finished, store: Path, estimate: Estimate, start: Starter) -> list[str]:
    """Begin a build that nobody asked for, unless earlier ones gave nothing or the engine is there by now."""
    if _engine_there(video.job, store) is not None:
        return []
    folder = _place(video.job, store)
    if (why := Builds.of(folder, video.job.checkpoint.model_hash()).why_no_more()) is None:
        return _begin(video, store, estimate, start)
    return [
        f"no engine is built for later videos, because {why} (log: {log_path(folder)}); to try again: "
        f"{_command(video)}"
    ]


def _engine_there(job: Job, store: Path) -> Path | None:
    """The engine in `store` that later videos take by themselves, if there is one."""
    from runtime.engines.compiled import find_engine

    return find_engine(job.checkpoint, device="cpu", dtype="float32", engines=store)[0]


def _begin(video: Finished, store: Path, estimate: Estimate, start: Starter) -> list[str]:
    """Begin the build, unless an earlier video's is under way.

    Raises:
        UserError: if the store cannot be written to, or the system starts no process.
    """
    folder = _place(video.job, store)
    log = log_path(folder)
    if is_locked(folder):
        return [f"an engine for later videos is being built already; if in the background, it logs to {log}"]
    try:
        store.mkdir(parents=True, exist_ok=True)
        builds = Builds.of(folder, video.job.checkpoint.model_hash())
        # Counted here: a process that ends in its first seconds could not say so.
        replace(builds, begun=builds.begun + 1).write(folder)
        number = start(MODULE, [str(video.job.checkpoint.folder.resolve()), str(folder)], log)
    except OSError as error:
        told = "the output is finished, but no engine is built for later videos"
        raise UserError(f"{told}: {error}") from error
    return [
        f"building an engine for later videos in the background (process {number}, log: {log}); "
        "--no-build-engine turns this off",
        f"it denoises about {estimate.times_as_fast:.2f} times as fast ({estimate.source}); with it a seed's "
        f"video differs in its last bits from one without, which --engine {EAGER} still makes",
    ]


def _hint(video: Finished, estimate: Estimate) -> list[str]:
    """What an engine would save, and the command that builds it; nothing if the video was short."""
    spent, saved = video.spent.seconds, estimate.saved(video.spent.seconds)
    if spent < LONG_SECONDS or saved <= 0:
        return []
    repaying = estimate.repaying_seconds(spent, video.seconds)
    return [
        f"an engine would save about {saved:.0f} of the {spent:.0f} s that denoising took, and repay its "
        f"building after {repaying:.0f} s of such video ({estimate.times_as_fast:.2f} times as fast, "
        f"{estimate.source})",
        f"build it once, and later videos use it (except with --engine {EAGER}): {_command(video)}",
    ]


def _command(video: Finished) -> str:
    """The command that builds the engine while the user waits."""
    options = {"checkpoint": video.checkpoint, "precision": PRECISION, **ON_CPU}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return shlex.join(["vmla-export", "build", *words])


def _place(job: Job, store: Path) -> Path:
    """The engine's folder, named as `vmla-export build` names it."""
    name = f"{job.checkpoint.name}-{ON_CPU['backend']}-{PRECISION}"
    return place_of(store, name, job.checkpoint.model_hash())
