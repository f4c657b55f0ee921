"""After a long video without an engine: the command that builds one, and what it might save."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from export.backends.registry import BACKENDS
from export.checks import ON_CPU
from export.engine.manifest import EAGER
from runtime.telemetry.events import ChunkReport, NoTelemetry

if TYPE_CHECKING:
    from runtime.planning.job import Job

LONG_SECONDS = 60.0
"""Seconds of denoising from which an engine is worth a word: building one takes a minute or two."""
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
    None where an engine made it already, the video was short, or no engine is known to be faster: on a GPU,
    in a narrow type or with a cache in one, for a model whose first chunk has another length, and without a
    C++ compiler.
    """
    known = job.engine_folder is None and job.device.type == "cpu" and str(job.dtype) == "torch.float32"
    if not known or job.fp8_cache or seconds < LONG_SECONDS or job.checkpoint.model_config().first_chunk:
        return []
    if BACKENDS[ON_CPU["backend"]].offer("no GPU", None) is None:
        return []
    saved = seconds * (1 - 1 / SPEED_UP)
    options = {"checkpoint": checkpoint, "precision": "fp32", **ON_CPU}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = shlex.join(["vmla-export", "build", *words])
    return [
        f"an engine would save some {saved:.0f} of the {seconds:.0f} s that denoising took, if it is "
        f"{SPEED_UP} times as fast here too (measured on another machine, with an earlier model)",
        f"build one once, and later videos take it (--engine {EAGER} does not): {command}",
    ]
