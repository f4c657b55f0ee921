"""A rollout in a few figures, the first frame apart from the steady state; also as Prometheus text."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from plugins.atomic_files import atomic_write_text
from plugins.errors import UserError
from runtime.telemetry.best_effort import BestEffort, Warn
from runtime.telemetry.events import ChunkReport, NamedTelemetry, NoTelemetry, Telemetry

RECENT = 4096
"""Chunks that percentiles are taken over: an hour of video."""


class Figures(NamedTuple):
    """Figures of a rollout; chunk times are in seconds, of the chunks after the first.

    Percentiles are those of the last `RECENT` chunks.
    """

    chunks: int
    frames: int
    first_frame_seconds: float
    """Seconds from the start of the rollout until the first chunk was decoded."""
    frames_per_second: float
    times_real_time: float
    chunk_p50: float
    chunk_p95: float
    chunk_p99: float
    stalls: int
    stalled_seconds: float
    resident_bytes: int


class Summary(NoTelemetry):
    """Collects the figures of one rollout, in memory that does not grow with it."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=RECENT)
        self._chunks = 0
        self._first: ChunkReport | None = None
        self._last: ChunkReport | None = None

    def chunk(self, report: ChunkReport) -> None:
        """Note when the chunk was ready."""
        if self._last is None:
            self._first = report
        else:
            self._gaps.append(report.seconds - self._last.seconds)
        self._chunks += 1
        self._last = report

    def figures(self) -> Figures | None:
        """The figures so far; None before the first chunk."""
        first, last = self._first, self._last
        if first is None or last is None:
            return None
        gaps = sorted(self._gaps)
        speed = (last.frames - first.frames) / max(last.seconds - first.seconds, 1e-9)
        p50, p95, p99 = (percentile(gaps, share) for share in (0.5, 0.95, 0.99))
        return Figures(
            chunks=self._chunks,
            frames=last.frames,
            first_frame_seconds=first.seconds,
            frames_per_second=speed,
            times_real_time=speed / last.frames_per_second,
            chunk_p50=p50,
            chunk_p95=p95,
            chunk_p99=p99,
            stalls=last.stalls,
            stalled_seconds=last.stalled_seconds,
            resident_bytes=last.resident_bytes,
        )


def percentile(ordered: list[float], share: float) -> float:
    """The smallest of `ordered` values that a `share` of them does not exceed; 0 if there are none."""
    # The nearest rank, ceil(share * n), in whole numbers, which do not round.
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0.0


def prometheus(figures: Mapping[str, Figures]) -> str:
    """The figures of each video in Prometheus' text format; a video without a name has no label."""
    labels = {video: f"{{video={json.dumps(video)}}}" if video else "" for video in figures}
    lines = []
    for name in Figures._fields:
        lines.append(f"# TYPE videomla_{name} gauge")
        lines += [f"videomla_{name}{labels[v]} {getattr(one, name)}" for v, one in figures.items()]
    return "\n".join(lines) + "\n"


class PrometheusFile(NoTelemetry):
    """A file of the latest figures for Prometheus' text-file collector, rewritten once a second.

    Once it cannot be written, its last figures stay.
    """

    def __init__(self, path: Path, warn: Warn, *, seconds: float = 1.0) -> None:
        """Write it, without figures yet.

        Raises:
            UserError: if it cannot be written.
        """
        self._path, self._seconds, self._next = path, seconds, 0.0
        self._lock, self._summaries = threading.Lock(), dict[str, Summary]()
        self._attempt = BestEffort(path, warn)
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file that a newer one could replace; name another")
        try:
            self._write()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error

    def of(self, video: str) -> Telemetry:
        """The telemetry of the video called `video`, whose figures carry that name."""
        return NamedTelemetry(self._take, video)

    def chunk(self, report: ChunkReport) -> None:
        """Note the chunk, and write the file if a second has passed or it is the last one."""
        self._take("", report)

    def _take(self, video: str, report: ChunkReport) -> None:
        with self._lock:
            self._summaries.setdefault(video, Summary()).chunk(report)
            if time.monotonic() >= self._next or report.chunk + 1 == report.chunks:
                self._next = time.monotonic() + self._seconds
                self._attempt(self._write)

    def _write(self) -> None:
        found = {video: summary.figures() for video, summary in self._summaries.items()}
        shown = {video: one for video, one in found.items() if one is not None}
        atomic_write_text(self._path, prometheus(shown))
