"""Makes ordered videos and writes their files: one or several at once, in one session.

Each video has the frames that it would have if made alone, and its own sidecar and state. If one fails, the
others continue. All can be stopped, and resumed one by one or together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from plugins.errors import UserError
from runtime.outputs import FrameSink
from runtime.planning.job import Job
from runtime.planning.plan import VideoPlan
from runtime.prompts.sources import FixedPrompts
from runtime.prompts.videos_file import VideoEntry
from runtime.resume.autosave import Autosave, resume_command
from runtime.resume.sidecar import describe_prompts, describe_video, sidecar_path, write_begun
from runtime.session.destination import (
    claimed,
    is_persistent,
    is_resumable,
    leftovers,
    open_sink,
    replace_older,
)
from runtime.session.outcome import Outcome, in_one_line, raise_failure, record
from runtime.session.replay import Order
from runtime.session.session import Session
from runtime.session.task import VideoTask
from runtime.telemetry.events import NoTelemetry, Telemetry, TelemetryGroup
from runtime.telemetry.metrics import Summary


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one of the videos ended."""

    output: Path
    outcome: Outcome
    failure: str | None
    """Why it ended early, in one line; None if it did not, or was stopped."""
    resumable: bool
    """Whether there is a state to resume from."""

    def closing_line(self) -> str:
        """The line that is printed if it was stopped: how to resume it."""
        return f"stopped; resume with: {resume_command(self.output)}" if self.resumable else "stopped"


class VideoFile:
    """One video of a session, and its output: a file, a folder, a stream or nothing."""

    def __init__(
        self, session: Session, output: Path, order: Order, sink: FrameSink, telemetry: Telemetry,
        *, save_every: float | None, load_seconds: float,
    ) -> None:  # fmt: skip
        """Begin the video; see `make_videos`."""
        self._output, self._order, self._load_seconds = output, order, load_seconds
        self._summary, self._outcome = Summary(), list[Outcome]()
        # An order to resume has been compared with the weights already, and holds the description.
        told = None if order.described is None else order.describe
        self._describe = told or partial(session.describe, order.job, frames=order.frames, scale=order.scale)
        self._has_older = order.state is None and is_persistent(output) and bool(leftovers(output))
        self._autosave = self._autosaved(save_every)
        self._announced = order.state is None and is_persistent(output) and not self._has_older
        if self._announced:
            write_begun(output, _begun(order))
        try:
            self.task: VideoTask = session.admit(
                order.job,
                sink,
                frames=order.frames,
                telemetry=TelemetryGroup([self._summary, telemetry]),
                autosave=self._autosave,
                state=order.state,
                on_end=self._record,
            )
        except BaseException:
            if self._announced:
                sidecar_path(output).unlink(missing_ok=True)
            raise

    def _autosaved(self, every: float | None) -> Autosave | None:
        if every is not None and not 0 <= every < math.inf:
            raise UserError(f"save_every is {every}; use a number of seconds, 0 or more")
        if every is None or not is_persistent(self._output) or not is_resumable(self._output):
            return None
        saved = self._order.state is not None
        return Autosave(self._output, self._describe, every=every, saved=saved, has_older=self._has_older)

    def _record(self, task: VideoTask) -> None:
        """Write the outcome into the sidecar."""
        outcome = Outcome.of(task, self._summary.figures(), load_seconds=self._load_seconds)
        self._outcome.append(outcome)
        if self._announced and not (outcome.frames or (self._autosave is not None and self._autosave.saved)):
            sidecar_path(self._output).unlink(missing_ok=True)
        nothing = self._has_older and not outcome.frames  # then the older video is still there
        if task.failure is None and is_persistent(self._output) and not nothing:
            known = None if self._autosave is None else self._autosave.video
            # Live prompts may have changed since it was described.
            now = describe_prompts(self._order.job.prompts.changes)
            record(self._output, {**(known or self._describe()), **now}, outcome)

    def outcome(self) -> Outcome:
        """The outcome of the video, once it has ended.

        Raises:
            UserError: if it failed.
        """
        self.task.wait()
        raise_failure(self.task)
        return self._outcome[0]

    def ending(self) -> Ending:
        """How the video ended, failures included."""
        self.task.wait()
        failure = None
        try:
            raise_failure(self.task)
        except UserError as error:
            failure = str(error)
        resumable = self._autosave is not None and self._autosave.saved and not self._outcome[0].complete
        return Ending(
            output=self._output, outcome=self._outcome[0], failure=failure, resumable=resumable
        )  # fmt: skip


def make_videos(
    orders: Mapping[Path, Order], *, telemetry: Callable[[Path], Telemetry], stop: threading.Event,
    save_every: float | None = 5.0, memory: int | None = None, overwrite: bool = False,
) -> list[Ending]:  # fmt: skip
    """Make all `orders` at once: new videos, and the rest of stopped ones.

    Args:
        orders: by output path; all must have the same checkpoint and engine.
        telemetry: returns the listener for the video at an output path.
        stop: when set, all end after the current chunk; unfinished videos then have their states on disk.
        save_every: seconds between two states of a video on disk; None saves none.
        memory: bytes for weights and videos together; None checks nothing.
        overwrite: let new videos replace older ones, once they have frames.

    Returns:
        How each ended, in the order of `orders`.

    Raises:
        UserError: if they do not fit, an output path is not free, or the engine cannot be loaded;
            nothing is written then.
    """
    job = next(iter(orders.values())).job
    if memory is not None:
        check_room(job.plan(), len(orders), memory)
    with ExitStack() as stack:
        there = {output for output in orders if output.absolute().parent.is_dir()}
        _claim(stack, {output: orders[output] for output in orders if output in there}, overwrite=overwrite)
        sinks = {output: sink_for(output, order) for output, order in orders.items()}
        began = perf_counter()
        session = stack.enter_context(load_session(job, memory))
        load_seconds = perf_counter() - began
        _make_folders([output for output, order in orders.items() if order.state is None])
        _claim(stack, {output: orders[output] for output in orders if output not in there})
        videos = [
            VideoFile(
                session, output, order, sinks[output], telemetry(output),
                save_every=save_every, load_seconds=load_seconds,
            )
            for output, order in orders.items()
        ]  # fmt: skip
        session.run(stop)
    return [video.ending() for video in videos]


def make_in(
    session: Session, output: Path, order: Order, *, stop: threading.Event, save_every: float | None = 5.0,
    overwrite: bool = False,
) -> Ending:  # fmt: skip
    """Make one video in a loaded session that makes no other; see `make_videos`.

    Raises:
        UserError: if the output path is not free.
    """
    with ExitStack() as stack:
        _make_folders([output] if order.state is None else [])
        _claim(stack, {output: order}, overwrite=overwrite)
        video = VideoFile(
            session, output, order, sink_for(output, order), NoTelemetry(), save_every=save_every,
            load_seconds=0.0,
        )  # fmt: skip
        session.run(stop)
        video.task.end()
        session.run()
        return video.ending()


def orders_of(videos: Sequence[VideoEntry], kind: Order) -> dict[str, Order]:
    """Orders by name: `kind` with the prompt of each of `videos`, and with its seed if it has one."""
    return {
        video.name: replace(
            kind,
            job=replace(
                kind.job,
                prompts=FixedPrompts(video.prompt),
                seed=kind.job.seed if video.seed is None else video.seed,
            ),
        )
        for video in videos
    }


def check_room(plan: VideoPlan, videos: int, memory: int) -> None:
    """Refuse more videos than fit.

    Raises:
        UserError: naming how many fit, and the memory that would hold all.
    """
    if (fit := plan.videos_in(memory)) < videos:
        raise UserError(
            f"{videos} videos at once take {plan.bytes_for(videos):,} bytes, but {memory:,} hold {fit}; "
            f"make fewer at once, or raise --memory if there is more{plan.remedy(videos, memory)}"
        )


def _claim(stack: ExitStack, orders: Mapping[Path, Order], *, overwrite: bool = False) -> None:
    """Claim the output paths of `orders` until `stack` is closed."""
    for output, order in orders.items():
        stack.enter_context(claimed(output, fresh=order.state is None, overwrite=overwrite))


def load_session(job: Job, memory: int | None = None) -> Session:
    """Load a session for videos like `job`, within `memory` bytes if given.

    Raises:
        UserError: if memory does not suffice, or the engine fails while it is loaded.
    """
    try:
        return Session(job, memory=memory)
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError) and job.text_device == job.device
        mend = f" (--text-device cpu keeps the text encoder off {job.device})" if full else ""
        raise UserError(f"cannot load the model: {in_one_line(error)}{mend}") from error


def sink_for(output: Path, order: Order) -> FrameSink:
    """The sink of the video; a file that cannot be continued is refused here, before the model is loaded.

    An older video at `output` is removed once the new one has frames.

    Raises:
        UserError: as `open_sink`.
    """
    if order.state is not None:
        return open_sink(output, scale=order.scale, after=order.state.mark)
    start = order.job.start
    if start is not None and output.exists() and start.path.exists() and output.samefile(start.path):
        raise UserError(f"{output} is what the video continues; choose another name")
    older = is_persistent(output) and leftovers(output)
    clear = partial(replace_older, output, _begun(order)) if older else None
    return open_sink(output, scale=order.scale, clear=clear)


def _begun(order: Order) -> dict[str, Any]:
    """The description of a video without the hashes of weights, which take a while."""
    return describe_video(order.job, frames=order.frames, scale=order.scale)


def _make_folders(outputs: Sequence[Path]) -> None:
    """Create the folders that the outputs lie in.

    Raises:
        UserError: if one cannot be created.
    """
    try:
        for output in outputs:
            if is_persistent(output):
                output.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename}: {error.strerror}") from error
