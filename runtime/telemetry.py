"""What a rollout reports while it runs: one line for a person, JSON lines for a program, or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vmla.progress import ProgressLine


@dataclass(frozen=True, kw_only=True)
class ChunkReport:
    """One chunk, just handed to the writer."""

    chunk: int
    chunks: int
    frames: int
    """Frames made so far, this chunk's included."""
    seconds: float
    """Since the rollout began."""
    denoise_seconds: float
    decode_seconds: float
    queue_depth: int
    stalled_seconds: float
    """Waited for the sink so far."""
    resident_bytes: int
    frames_per_second: float
    """Of the video, when played."""

    @property
    def speed(self) -> float:
        """Frames made per second."""
        return self.frames / max(self.seconds, 1e-9)


class Telemetry(Protocol):
    """Is told of every chunk."""

    def chunk(self, report: ChunkReport) -> None:
        """A chunk was made."""


class NoTelemetry:
    """Tells nobody."""

    def chunk(self, report: ChunkReport) -> None:
        """Nothing."""


class LineTelemetry:
    """Chunk, speed, times real time and memory in one line."""

    def __init__(self, line: ProgressLine, prompt: str) -> None:
        self._line, self._prompt = line, prompt

    def chunk(self, report: ChunkReport) -> None:
        """Show it."""
        self._line.show(
            f"chunk {report.chunk + 1}/{report.chunks}  {report.speed:.0f} frames/s  "
            f"{report.speed / report.frames_per_second:.1f}x real time  "
            f"{report.resident_bytes / 2**20:.0f} MiB  {self._prompt}"
        )


class JsonLines:
    """One JSON object per chunk, appended to a file that always ends in a whole line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> JsonLines:
        """Open the file."""
        self._file = self._path.open("w", buffering=1)
        return self

    def chunk(self, report: ChunkReport) -> None:
        """Write it."""
        self._file.write(json.dumps({"event": "chunk", **asdict(report)}) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()


class Several:
    """Tells each of several."""

    def __init__(self, listeners: Sequence[Telemetry]) -> None:
        self._listeners = listeners

    def chunk(self, report: ChunkReport) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.chunk(report)
