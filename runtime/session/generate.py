"""Runs a job into a sink: frames out, reports on the way, a sidecar at the end, and never a torn file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from plugins.errors import UserError
from runtime.device.memory import peak_resident_bytes
from runtime.outputs import FrameSink
from runtime.outputs.writer import FrameWriter
from runtime.planning.request import Job
from runtime.resume.autosave import Keeper
from runtime.resume.sidecar import describe_prompts, write_sidecar
from runtime.resume.state import State, state_path
from runtime.rollout.rollout import Rollout
from runtime.session.pipeline import DecodeError, Film
from runtime.telemetry.events import Several, Telemetry
from runtime.telemetry.metrics import Figures, Summary


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    complete: bool
    """False if it was interrupted."""
    frames: int
    """In the sink, those of earlier runs included."""
    made: int
    """By this run."""
    load_seconds: float
    first_frame_seconds: float
    """From the start of the rollout to the first frame in the sink's queue."""
    seconds: float
    """Of the rollout and the writing, without loading."""
    peak_bytes: int
    state_seconds: float
    """Spent on states on disk, on a thread of its own."""
    applied: list[dict[str, Any]]
    """The prompts that chunks were made under, each with its first chunk."""
    figures: Figures | None

    @classmethod
    def of(cls, film: Film, figures: Figures | None, *, load_seconds: float, seconds: float) -> Outcome:
        """That of a film whose lanes are closed."""
        keeper, written = film.keeper, film.writer.written
        made = [change for change in film.job.prompts.changes if change.chunk < film.made]
        return cls(
            complete=film.complete,
            frames=film.earlier + written,
            made=written,
            load_seconds=load_seconds,
            first_frame_seconds=film.first_frame_seconds,
            seconds=seconds,
            peak_bytes=peak_resident_bytes(),
            state_seconds=0.0 if keeper is None else keeper.busy_seconds,
            applied=describe_prompts(made),
            figures=figures,
        )


def produce(
    job: Job,
    sink: FrameSink,
    telemetry: Telemetry,
    *,
    frames: int,
    stop: threading.Event | None = None,
    keeper: Keeper | None = None,
    state: State | None = None,
) -> Outcome:
    """Make `frames` frames and write them to `sink`; `stop` ends it after the chunk under way.

    Args:
        job: the video.
        sink: standing where the `state` left it, if there is one.
        telemetry: is told of every chunk.
        frames: of the whole video.
        stop: ends it early.
        keeper: keeps the state on disk on the way, and at an early end.
        state: to go on from.

    Raises:
        UserError: if the sink or the decoder fails; what the sink took before stays.
    """
    began = perf_counter()
    engine, decoder, summary = job.engine(), job.decoder(), Summary()
    rollout = Rollout(engine, job.prompts, job.sampler, seeds=[job.seed], threads=job.cores.denoiser)
    earlier = 0
    if state is not None:
        state.snapshot.restore(rollout)
        decoder.memory, earlier = state.memory_on(job.device), state.mark["frames"]
    loaded = perf_counter()
    writer = FrameWriter(sink)
    listeners = Several([summary, telemetry])
    film = Film(job, rollout, decoder, writer, listeners, frames=frames, earlier=earlier, keeper=keeper)
    with _one_line_for(film), ExitStack() as stack:
        stack.enter_context(closing(engine))
        for lane in (keeper, writer, film.decoding):
            if lane is not None:
                stack.enter_context(lane)
        film.run(stop or threading.Event())
    return Outcome.of(film, summary.figures(), load_seconds=loaded - began, seconds=perf_counter() - loaded)


@contextmanager
def _one_line_for(film: Film) -> Iterator[None]:
    try:
        yield
    except (OSError, DecodeError) as error:
        raise UserError(ended_early(film, error)) from error


def ended_early(film: Film, error: Exception) -> str:
    """What ended a film early, in one line that says how much of it there is and how it goes on."""
    what = f"cannot write the video: {error.strerror or error}" if isinstance(error, OSError) else error
    mend = f"; go on with: {film.keeper.command}" if film.keeper is not None and film.keeper.kept else ""
    return f"{what}; {film.earlier + film.writer.written} frames were kept{mend}"


def record(output: Path, video: dict[str, Any], outcome: Outcome) -> None:
    """Write the sidecar of a video that has ended; a complete one needs its state no more."""
    figures = {} if outcome.figures is None else outcome.figures._asdict()
    write_sidecar(
        output,
        video,
        {
            "complete": outcome.complete,
            "frames_written": outcome.frames,
            "applied": outcome.applied,
            "load_seconds": round(outcome.load_seconds, 3),
            "seconds": round(outcome.seconds, 3),
            "state_seconds": round(outcome.state_seconds, 3),
            "peak_bytes": outcome.peak_bytes,
            "timing": {name: round(value, 4) for name, value in figures.items()},
        },
    )
    if outcome.complete:
        state_path(output).unlink(missing_ok=True)


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
