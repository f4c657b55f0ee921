"""One video of a session, as it is steered from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Literal

import torch

from plugins.errors import UserError
from runtime.resume.state import Snapshot, State
from runtime.session.commands import CommandQueue
from runtime.session.stages import VideoStages

Status = Literal["running", "paused", "ending", "ended"]


class VideoTask:
    """A video from its admission to its end.

    `pause`, `resume`, `end`, `cancel`, `snapshot`, `wait` and all properties are for any thread. The
    first four return at once and take effect after the chunk under way.
    """

    def __init__(
        self, number: int, stages: VideoStages, commands: CommandQueue, *, clock: Callable[[], float],
        describe: Callable[[], Mapping[str, Any]], on_end: Callable[[VideoTask], None],
    ) -> None:  # fmt: skip
        """Start the threads of `stages`.

        Args:
            number: in the order of admission.
            stages: make the video.
            commands: the door of the session.
            clock: seconds, by which it is known who watches since when.
            describe: says what determines the frames.
            on_end: told, on a thread of its own, when the sink has all frames that it will ever get.
        """
        self.number, self.stages = number, stages
        self.failure: Exception | None = None
        """What ended it early: of its sink, its decoder, its prompt or its state on disk."""
        self.started, self.ended = perf_counter(), 0.0
        """When it was let in, and when the sink had all that was made; of `time.perf_counter`."""
        self.describe = describe
        """What determines the frames; may read all weights, the first time."""
        self._commands, self._clock, self._on_end = commands, clock, on_end
        self._watched_since, self._paused_at = clock(), 0.0
        self._paused = self._closing = False
        self._done, self._asked = threading.Event(), list[Future[State]]()
        self._lock = threading.Lock()
        stages.start(lambda: commands.post(self._notice))

    @property
    def status(self) -> Status:
        """`ending` from the last chunk on until its frames are in the sink, then `ended`."""
        if self._done.is_set():
            return "ended"
        return "ending" if self._closing else "paused" if self._paused else "running"

    @property
    def over(self) -> bool:
        """Whether no more chunks of it will be made."""
        return self._closing

    @property
    def made(self) -> int:
        """Chunks denoised, those of an earlier run included."""
        return self.stages.made

    @property
    def frames(self) -> int:
        """Frames that the sink has, those of an earlier run included."""
        return self.stages.earlier + self.stages.writer.written

    @property
    def deadline(self) -> float:
        """When somebody who watches from the beginning on has seen all that is made."""
        return self._watched_since + self.stages.ahead_seconds

    def pause(self) -> None:
        """Make no more chunks until `resume`; what is made is decoded and written."""
        self._commands.post(self._pause)

    def resume(self) -> None:
        """Go on after `pause`, for somebody whose watching paused as long."""
        self._commands.post(self._resume)

    def end(self) -> None:
        """Make no more chunks; what is made reaches the sink, and the state the disk if it is saved."""
        self._commands.post(self.close)

    def cancel(self) -> None:
        """Make no more chunks, and drop what is made but not written; no further state is saved."""
        self._commands.post(self._cancel)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most so many seconds; whether it has."""
        return self._done.wait(timeout)

    def snapshot(self) -> State:
        """All that is needed to go on from the end of the chunk under way; the video itself goes on.

        Waits until all frames before that moment are in the sink. Reads all weights the first time, to
        say what they are.

        Raises:
            UserError: if the video ends early first, and so has no such state.
        """
        answer: Future[State] = Future()
        self._commands.post(partial(self._answer, answer))
        state = answer.result().in_main_memory()
        return replace(state, video={**self.describe(), **state.video})

    # What follows is for the session, and runs in its turn.

    def step(self) -> None:
        """Make its next chunk."""
        with self._alone():
            self.stages.step()
        if self.failure is not None or self.stages.finished:
            self.close()

    def close(self, *, save: bool = True, failure: Exception | None = None) -> None:
        """Begin to end it; of an unfinished video, `save` the state, unless it ends by a `failure`."""
        if self._closing:
            return
        self._closing = True
        self.failure = self.failure or failure
        threading.Thread(target=self._finish, args=(save,), name="video-end", daemon=True).start()

    def _finish(self, save: bool) -> None:
        autosave = self.stages.autosave
        with self._alone():
            if autosave is not None and save and self.failure is None and not self.stages.finished:
                self.stages.save(autosave.save)
        with self._alone():
            self.stages.close()
        self.ended = perf_counter()
        with self._alone():
            self._on_end(self)
        self._done.set()
        self._settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep to this video what goes wrong with it; the first error counts."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - who made the session asks for `failure`
            self.failure = self.failure or error

    def _notice(self) -> None:
        """Something has gone wrong on one of the threads, perhaps while no chunk is asked for."""
        with self._alone():
            self.stages.check()
        if self.failure is not None:
            self.close()

    def _pause(self) -> None:
        if not self._paused:
            self._paused, self._paused_at = True, self._clock()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._watched_since += self._clock() - self._paused_at

    def _cancel(self) -> None:
        self.stages.drop()
        self.close(save=False)

    def _answer(self, answer: Future[State]) -> None:
        with self._lock:
            self._asked.append(answer)
        if not self._closing:
            with self._alone():
                self.stages.save(partial(_give, answer))
        elif self._done.is_set():
            self._settle()

    def _settle(self) -> None:
        """Answer those who asked for a state and did not get one before the end."""
        with self._lock:
            asked, self._asked = self._asked, []
        for answer in asked:
            if answer.done():
                continue
            if self.stages.complete and self.failure is None:
                answer.set_result(self._last_state())
            else:
                answer.set_exception(UserError("the video has ended early; there is no state to go on from"))

    def _last_state(self) -> State:
        """Of a complete video: nothing is to be made any more."""
        nothing = Snapshot(number=self.made, frame=0, forgotten=0, cache=torch.empty(0), past={})
        return State(snapshot=nothing, decoder_state=None, mark=self.stages.writer.sink.mark())


def _give(answer: Future[State], state: State) -> None:
    answer.set_result(state)
