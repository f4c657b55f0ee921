"""After a video made without an engine: suggests the command that builds one, or builds it.

An engine is never built while a video is being made: compiling would take the cores that make it. Nor may a
video switch to another engine midway: its frames would no longer be the same to the last bit.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from export.backends.registry import BACKENDS
from export.checks import ON_CPU
from export.engine.manifest import EAGER
from runtime.telemetry.events import ChunkReport, NoTelemetry
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say

if TYPE_CHECKING:
    from runtime.planning.job import Job

LONG_SECONDS = 60.0
"""Seconds of denoising from which an engine is worth suggesting: building one takes a minute or two."""
NICENESS = 10
"""Niceness of a build after a video: nobody waits for it."""
SPEED_UP = 1.73
"""How many times as fast as the eager model an AOTInductor engine in float32 denoises `sprites` on two cores
(`bench/results/engines-sprites.json`). The machine that prints the hint may differ."""


class DenoiseTime(NoTelemetry):
    """Adds up the seconds that chunks spent in denoising steps and clean passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def chunk(self, report: ChunkReport) -> None:
        """Add the seconds of one chunk."""
        self.seconds += report.denoise_seconds + report.clean_seconds


def engine_hint(job: Job, checkpoint: str, seconds: float) -> list[str]:
    """The hint after a video of `job` that took `seconds` to denoise: two lines, or none.

    `checkpoint` is the name by which the user chose the checkpoint. There is no hint if the video was short,
    or if an engine would not be faster (`_pays`).
    """
    if seconds < LONG_SECONDS or not _pays(job):
        return []
    saved = seconds * (1 - 1 / SPEED_UP)
    options = {"checkpoint": checkpoint, "precision": "fp32", **ON_CPU}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = shlex.join(["vmla-export", "build", *words])
    return [
        f"an engine would save about {saved:.0f} of the {seconds:.0f} s that denoising took, if it is "
        f"{SPEED_UP} times as fast here too (measured on another machine)",
        f"build it once, and later videos use it (except with --engine {EAGER}): add --build-engine to the "
        f"next video, or run now: {command}",
    ]


def _pays(job: Job) -> bool:
    """Whether an engine is known to be faster for `job`, and can be built on this machine.

    It is not if an engine made the video already, on a GPU, if the model or its cache is narrower than
    float32, if the model's first chunk has another length, or if there is no C++ compiler.
    """
    known = job.engine_folder is None and job.device.type == "cpu" and str(job.dtype) == "torch.float32"
    if not known or job.fp8_cache or job.checkpoint.model_config().first_chunk:
        return False
    return BACKENDS[ON_CPU["backend"]].offer("no GPU", None) is not None


def build_after(job: Job, checkpoint: str, stop: Stop) -> None:
    """Build the engine for later videos, at low priority, once the video of `job` is finished.

    A signal stops the build and removes what it has written; the video is not affected.

    Raises:
        UserError: if it cannot be built, or there is no folder to keep it in.
    """
    from runtime.cli.export import build_for_cpu

    if job.engine_folder is not None:
        return
    if not _pays(job):
        say("no engine is built: none is known to be faster for this model, dtype and device")
        return
    os.nice(NICENESS)
    say("the video is finished; building an engine for later ones (Ctrl-C cancels the build)")
    with stop.raised():
        build_for_cpu(checkpoint, stop)
