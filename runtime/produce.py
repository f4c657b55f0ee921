"""Runs a job into a sink: frames out, reports on the way, a sidecar at the end, and never a torn file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from runtime.job import Job, to_pixels
from runtime.memory import peak_resident_bytes, resident_bytes
from runtime.sidecar import write_sidecar
from runtime.sinks import FrameSink
from runtime.telemetry import ChunkReport, Telemetry
from runtime.writer import FrameWriter
from vmla.config import FRAMES_PER_SECOND
from vmla.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    complete: bool
    """False if it was interrupted."""
    frames: int
    load_seconds: float
    first_frame_seconds: float
    """From the start of the rollout to the first frame in the sink's queue."""
    seconds: float
    """Of the rollout and the writing, without loading."""
    peak_bytes: int


def produce(
    job: Job, sink: FrameSink, telemetry: Telemetry, *, frames: int, stop: threading.Event | None = None
) -> Outcome:
    """Make `frames` frames and write them to `sink`; `stop` ends it after the chunk under way.

    Raises:
        UserError: if the sink fails; what it took before stays.
    """
    stop = stop or threading.Event()
    began = perf_counter()
    engine, decoder = job.engine(), job.decoder()
    loaded = perf_counter()
    done, first = 0, 0.0
    writer = FrameWriter(sink)
    try:
        with closing(engine), writer:
            for chunk in job.run(engine, decoder):
                pixels = to_pixels(chunk.frames[0])[: frames - done]
                writer.write(pixels)
                done += len(pixels)
                first = first or perf_counter() - loaded
                telemetry.chunk(
                    ChunkReport(
                        chunk=chunk.number,
                        chunks=job.chunks,
                        frames=done,
                        seconds=perf_counter() - loaded,
                        denoise_seconds=chunk.denoise_seconds,
                        decode_seconds=chunk.decode_seconds,
                        queue_depth=writer.depth,
                        stalled_seconds=writer.stalled_seconds,
                        resident_bytes=resident_bytes(),
                        frames_per_second=FRAMES_PER_SECOND,
                    )
                )
                if stop.is_set():
                    break
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write the video: {reason}; {writer.written} frames were kept") from error
    return Outcome(
        complete=done >= frames,
        frames=writer.written,
        load_seconds=loaded - began,
        first_frame_seconds=first,
        seconds=perf_counter() - loaded,
        peak_bytes=peak_resident_bytes(),
    )


def record(output: Path, job: dict[str, Any], outcome: Outcome) -> None:
    """Write the sidecar of a video that has ended."""
    write_sidecar(
        output,
        job,
        {
            "complete": outcome.complete,
            "frames_written": outcome.frames,
            "load_seconds": round(outcome.load_seconds, 3),
            "seconds": round(outcome.seconds, 3),
            "peak_bytes": outcome.peak_bytes,
        },
    )


@contextmanager
def stopping_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
