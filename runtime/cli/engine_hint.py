"""After a video without an engine: the command that builds one, with what it might save, or the engine.

An engine is never built beside a video: compiling takes the cores that make it, and no video may change to
another engine on its way, because its last bits would change.
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
"""Seconds of denoising from which an engine is worth a word: building one takes a minute or two."""
NICENESS = 10
"""Of a build after a video, which nobody waits for."""
SPEED_UP = 1.47
"""Times as fast as the model itself that an AOTInductor engine in float32 denoised the first `sprites` on two
cores (`bench/results/engines-sprites.json`). Measured there, not on the machine that reads it."""


class DenoiseTime(NoTelemetry):
    """Adds up the time that chunks and their clean passes took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def chunk(self, report: ChunkReport) -> None:
        """Add those of one chunk."""
        self.seconds += report.denoise_seconds + report.clean_seconds


def engine_hint(job: Job, checkpoint: str, seconds: float) -> list[str]:
    """What to say of a video of `job` that took `seconds` to denoise: two lines, or none.

    `checkpoint` is what the user calls its checkpoint.
    None where the video was short, or an engine would not be faster (`_pays`).
    """
    if seconds < LONG_SECONDS or not _pays(job):
        return []
    saved = seconds * (1 - 1 / SPEED_UP)
    options = {"checkpoint": checkpoint, "precision": "fp32", **ON_CPU}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = shlex.join(["vmla-export", "build", *words])
    return [
        f"an engine would save some {saved:.0f} of the {seconds:.0f} s that denoising took, if it is "
        f"{SPEED_UP} times as fast here too (measured on another machine, with an earlier model)",
        f"build one once, and later videos take it (--engine {EAGER} does not), after the next video by "
        f"--build-engine, or now: {command}",
    ]


def _pays(job: Job) -> bool:
    """Whether an engine is known to be faster, and can be built here.

    Not where an engine made the video already, on a GPU, in a narrow type or with a cache in one, for a model
    whose first chunk has another length, or without a C++ compiler.
    """
    known = job.engine_folder is None and job.device.type == "cpu" and str(job.dtype) == "torch.float32"
    if not known or job.fp8_cache or job.checkpoint.model_config().first_chunk:
        return False
    return BACKENDS[ON_CPU["backend"]].offer("no GPU", None) is not None


def build_after(job: Job, checkpoint: str, stop: Stop) -> None:
    """Build the engine that later videos take, once the video of `job` is finished, with a low priority.

    A signal ends the build and leaves nothing of it; the video stays as it is.

    Raises:
        UserError: if it cannot be built, or there is nowhere to keep it.
    """
    from runtime.cli.export import build_for_cpu

    if job.engine_folder is not None:
        return
    if not _pays(job):
        say("no engine is built: none is known to be faster for this model, type and device")
        return
    os.nice(NICENESS)
    say("the video is finished; an engine for later ones is built now (Ctrl-C leaves it out)")
    with stop.raised():
        build_for_cpu(checkpoint, stop)
