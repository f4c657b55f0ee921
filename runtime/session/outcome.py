"""The outcome of a video: its figures, its sidecar, and one line of error if it failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.device.memory import peak_resident_bytes
from runtime.outputs.presence import LostOutputError
from runtime.outputs.stream import ReaderGoneError
from runtime.resume.sidecar import list_changes, write_sidecar
from runtime.resume.state import state_path
from runtime.session.producer import DecodeError
from runtime.session.task import VideoTask
from runtime.telemetry.metrics import Figures


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Frames, times and memory of a video that has ended."""

    complete: bool
    """False if it was interrupted."""
    frames: int
    """Frames in the sink, those of earlier runs included."""
    made: int
    """Frames that this run has made."""
    load_seconds: float
    """Seconds spent loading the engine and the decoder."""
    first_frame_seconds: float
    """Seconds from the start of the rollout to the first frame in the sink's queue."""
    seconds: float
    """Seconds from admission until the last frame was written, without loading."""
    peak_bytes: int
    """The most memory that the process has held so far."""
    state_seconds: float
    """Seconds spent writing states to disk, on a thread of its own."""
    applied: list[dict[str, Any]]
    """The prompts that were applied, each with its first chunk."""
    figures: Figures | None

    @classmethod
    def of(cls, task: VideoTask, figures: Figures | None, *, load_seconds: float) -> Outcome:
        """The outcome of `task`, whose sink has all frames it will get."""
        producer = task.producer
        applied = [change for change in producer.job.prompts.changes if change.chunk < task.made]
        return cls(
            complete=producer.complete,
            frames=task.frames,
            made=producer.writer.written,
            load_seconds=load_seconds,
            first_frame_seconds=producer.first_frame_seconds,
            seconds=task.ended - task.started,
            peak_bytes=peak_resident_bytes(),
            state_seconds=0.0 if producer.autosave is None else producer.autosave.busy_seconds,
            applied=list_changes(applied),
            figures=figures,
        )


def raise_failure(task: VideoTask) -> None:
    """Raise the error that ended a video early, if any.

    Raises:
        UserError: in one line, whatever it was.
    """
    failure = task.failure
    if isinstance(failure, UserError):
        raise failure
    if failure is not None:
        raise UserError(_ended_early(task, failure)) from failure


def _ended_early(task: VideoTask, error: BaseException) -> str:
    """The reason that a video ended early, its number of frames, and the command that resumes it."""
    if isinstance(error, ReaderGoneError):
        return f"{error.strerror}; {task.frames} frames were sent"
    autosave, frames = task.producer.autosave, f"{task.frames} frames were kept"
    mend = f"; resume with: {autosave.command}" if autosave is not None and autosave.saved else ""
    if isinstance(error, LostOutputError):
        again = f"; put it back, and{mend[1:]}" if mend else ""
        return f"{error.strerror}; it had {task.frames} frames{again}"
    if isinstance(error, DecodeError):
        return f"{error}; {frames}{mend}"
    what = "cannot write the video" if isinstance(error, OSError) else f"chunk {task.made} failed"
    return f"{what}: {in_one_line(error)}; {frames}{mend}"


def in_one_line(error: BaseException) -> str:
    """The message of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split("\n")[0].split())
    name = "memory ran out" if isinstance(error, MemoryError) else type(error).__name__
    return f"{name}: {said}" if said else name


def record(output: Path, video: dict[str, Any], outcome: Outcome) -> None:
    """Write the sidecar of a video that has ended, and remove the state of a complete one."""
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
