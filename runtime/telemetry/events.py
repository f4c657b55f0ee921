"""Reports on a rollout while it runs: one line for a person, JSON lines for a program, or none."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from plugins.errors import UserError
from runtime.outputs.stream import STANDARD_OUTPUT
from runtime.prompts.sources import Receipt
from runtime.telemetry.best_effort import BestEffort, Warn
from vmla.cli.progress import ProgressLine


@dataclass(frozen=True, kw_only=True)
class ChunkReport:
    """Figures of one chunk, taken when the writer has been handed its frames."""

    chunk: int
    chunks: int | None
    """Chunks of the whole video; None if it is endless."""
    frames: int
    """Frames made so far, this chunk's included."""
    seconds: float
    """Seconds since the rollout began, until the chunk was handed to the writer."""
    denoise_seconds: float
    clean_seconds: float
    """Duration of the clean pass before this chunk."""
    decode_seconds: float
    encode_seconds: float
    """Time spent encoding so far, for all chunks."""
    queue_depth: int
    """Chunks that wait for the sink."""
    decode_queue_depth: int
    """Chunks that wait for the decoder."""
    stalled_seconds: float
    """Time spent waiting for full queues so far, by the rollout and by the decoder."""
    stalls: int
    """Number of waits for full queues so far."""
    resident_bytes: int
    device_bytes: int
    """Bytes allocated on the GPU; 0 without one."""
    launches: int | None
    """Launches by the host for this chunk and the clean pass before it: graphs and uploads of their data,
    without prompts and decoding. None where no graph is replayed: on a CPU, where capture has
    failed, and in the first two chunks, as the first one and its clean pass are not captured."""
    frames_per_second: float
    """Frame rate of the video when played."""
    prompt: str
    earlier: int = 0
    """Frames that an interrupted run had made before this one began."""

    @property
    def speed(self) -> float:
        """Frames that this run has made per second since the rollout began."""
        return (self.frames - self.earlier) / max(self.seconds, 1e-9)


class Telemetry(Protocol):
    """Receives a report of every chunk and of every request for another prompt, from several threads."""

    def chunk(self, report: ChunkReport) -> None:
        """Called when a chunk has been handed to the writer."""

    def prompt(self, state: str, receipt: Receipt) -> None:
        """A request was `accepted`, `applied` (at `receipt.chunk`) or `superseded`."""


class NoTelemetry:
    """A listener that ignores every report."""

    def chunk(self, report: ChunkReport) -> None:
        """Ignore the chunk."""

    def prompt(self, state: str, receipt: Receipt) -> None:
        """Ignore the request."""


def shown(rate: float, places: int = 0) -> str:
    """A rate for a person, with so many places, or two digits of one below 1: a large model's on a CPU."""
    return f"{rate:.{places}f}" if rate >= 1 else f"{rate:.2g}"


class LineTelemetry(NoTelemetry):
    """Shows chunk, speed, times real time, memory and prompt in one line."""

    def __init__(self, line: ProgressLine) -> None:
        self._line = line

    def chunk(self, report: ChunkReport) -> None:
        """Show the chunk in place of the one before."""
        chunks = "" if report.chunks is None else f"/{report.chunks}"
        launches = "" if report.launches is None else f"{report.launches} launches  "
        self._line.show(
            f"chunk {report.chunk + 1}{chunks}  {shown(report.speed)} frames/s  "
            f"{shown(report.speed / report.frames_per_second, 1)}x real time  "
            f"{report.resident_bytes / 2**20:.0f} MiB  {launches}{report.prompt}",
            done=None if report.chunks is None else (report.chunk + 1) / report.chunks,
        )


class NamedTelemetry(NoTelemetry):
    """Passes the chunks of one of several videos to `take`, with the video's name."""

    def __init__(self, take: Callable[[str, ChunkReport], None], video: str) -> None:
        self._take, self._video = take, video

    def chunk(self, report: ChunkReport) -> None:
        """Call `take` with the video's name and the report."""
        self._take(self._video, report)


class TogetherLine:
    """Shows videos, chunks, speed of all and times real time of each in one line."""

    def __init__(self, line: ProgressLine, *, videos: int) -> None:
        self._line, self._videos, self._lock = line, videos, threading.Lock()
        self._latest: dict[str, ChunkReport] = {}

    def of(self, video: str) -> Telemetry:
        """The telemetry of the video called `video`."""
        return NamedTelemetry(self._show, video)

    def _show(self, video: str, report: ChunkReport) -> None:
        with self._lock:
            self._latest[video] = report
            latest = self._latest.values()
            done = sum(one.chunk + 1 for one in latest)
            chunks = "" if report.chunks is None else f"/{self._videos * report.chunks}"
            speed = sum(one.frames for one in latest) / max(1e-9, *(one.seconds for one in latest))
            self._line.show(
                f"{self._videos} videos  chunk {done}{chunks}  {shown(speed)} frames/s  "
                f"{shown(speed / self._videos / report.frames_per_second, 1)}x real time each  "
                f"{report.resident_bytes / 2**20:.0f} MiB",
                done=None if report.chunks is None else done / (self._videos * report.chunks),
            )


class JsonLines:
    """Writes a JSON object per chunk and per request, to a file that always ends in a whole line.

    Once it cannot be written, nothing more is written to it. Standard output (`-`) is shared with others, so
    a pipe there is written with waiting.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self._path, self._lock = path, threading.Lock()
        self._also: dict[str, Any] = {}
        self._attempt = BestEffort(path, warn)

    def __enter__(self) -> JsonLines:
        """Open the file.

        Raises:
            UserError: if it cannot be.
        """
        # Not blocking: a slow reader of a pipe must not hold up the video.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        standard = self._path == STANDARD_OUTPUT
        try:
            file = os.dup(1) if standard else os.open(self._path, flags, 0o666)
            self._file = os.fdopen(file, "wb", buffering=0)
        except OSError as error:
            nobody = error.errno == errno.ENXIO
            told = (
                "nobody reads it; start its reader first"
                if nobody
                else f"{error.strerror}; name another file"
            )
            raise UserError(f"cannot write {self._path}: {told}") from error
        return self

    def of(self, video: str) -> JsonLines:
        """A view of this open file for one of several videos, whose name each of its lines carries."""
        one = copy(self)
        one._also = {"video": video}
        return one

    def chunk(self, report: ChunkReport) -> None:
        """Write the report as one line."""
        self._write({"event": "chunk", **asdict(report)})

    def prompt(self, state: str, receipt: Receipt) -> None:
        """Write the report as one line."""
        self._write({
            "event": "prompt", "state": state, "request": receipt.number, "chunk": receipt.chunk,
            "prompt": receipt.prompt, "policy": receipt.policy,
        })  # fmt: skip

    def _write(self, event: dict[str, Any]) -> None:
        line = (json.dumps(self._also | event) + "\n").encode()
        with self._lock:
            self._attempt(partial(self._append, line))

    def _append(self, line: bytes) -> None:
        """Write a whole line, or none where that can be undone."""
        left = memoryview(line)
        try:
            while left:
                if (written := self._file.write(left)) is None:
                    raise BlockingIOError(errno.EAGAIN, "its reader does not keep up")
                left = left[written:]
        except OSError:
            with suppress(OSError):  # of a device or a pipe nothing can be cut off
                self._file.truncate(self._file.tell() - (len(line) - len(left)))
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, whose last line is complete."""
        self._attempt(self._file.close)


class TelemetryGroup:
    """Passes every report to several listeners."""

    def __init__(self, listeners: Sequence[Telemetry]) -> None:
        self._listeners = listeners

    def chunk(self, report: ChunkReport) -> None:
        """Pass the report on to every listener, in order."""
        for listener in self._listeners:
            listener.chunk(report)

    def prompt(self, state: str, receipt: Receipt) -> None:
        """Pass the report on to every listener, in order."""
        for listener in self._listeners:
            listener.prompt(state, receipt)
