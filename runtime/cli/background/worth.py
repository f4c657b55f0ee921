"""Whether an engine pays: what it saves, what building it takes, and where these figures come from."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from runtime.cli.background.records import nearest_measured
from runtime.telemetry.events import ChunkReport, NoTelemetry

SPEED_UP, BUILD_SECONDS = 1.61, 32.0
"""How many times as fast as the PyTorch model an AOTInductor engine in float32 denoises `sprites`, and the
seconds that it takes to build, on two cores of an AMD EPYC (`bench/results/engines-sprites.json`, LOG.md).
They stand in for what was not yet measured on this machine."""


class DenoiseTime(NoTelemetry):
    """Adds up the seconds that chunks spent in denoising steps and clean passes, and counts the chunks.

    Videos that are made at once may share one: each reports from a thread of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds = 0.0
        self.chunks = 0

    def chunk(self, report: ChunkReport) -> None:
        """Add one chunk."""
        with self._lock:
            self.seconds += report.denoise_seconds + report.clean_seconds
            self.chunks += 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an engine would gain, and its price."""

    times_as_fast: float
    build_seconds: float
    source: str
    """Where both figures were measured, in words."""

    @classmethod
    def of(cls, store: Path | None, weight_bytes: int) -> Estimate:
        """By what was measured on this machine with the engine of the most similar size; else elsewhere."""
        known = None if store is None else nearest_measured(store, weight_bytes)
        if known is None:
            return cls(
                times_as_fast=SPEED_UP, build_seconds=BUILD_SECONDS, source="not measured on this machine"
            )
        return cls(
            times_as_fast=known.times_as_fast,
            build_seconds=known.build_seconds,
            source=f"measured here with {known.checkpoint}",
        )

    def saved(self, denoise_seconds: float) -> float:
        """The seconds that an engine would have saved of so many; below 0 where it is slower."""
        return denoise_seconds * (1 - 1 / self.times_as_fast)

    def repaid(self, denoise_seconds: float) -> bool:
        """Whether a video that took so long to denoise would have saved all that building takes."""
        return self.saved(denoise_seconds) >= self.build_seconds

    def repaying_seconds(self, denoise_seconds: float, video_seconds: float) -> float:
        """Seconds of video after which building has repaid itself, at the speed of the video just made."""
        return video_seconds * self.build_seconds / self.saved(denoise_seconds)
