"""One video of a session, and how other threads control it."""

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
from runtime.session.producer import VideoProducer

Status = Literal["running", "paused", "ending", "ended"]


class VideoTask:
    """A video, from its admission to its end.

    `pause`, `resume`, `end`, `cancel`, `snapshot`, `wait` and all properties may be used from any thread. The
    first four return at once and take effect after the chunk under way.
    """

    def __init__(
        self, number: int, producer: VideoProducer, commands: CommandQueue, *, clock: Callable[[], float],
        describe: Callable[[], Mapping[str, Any]], on_end: Callable[[VideoTask], None],
    ) -> None:  # fmt: skip
        """Start the threads of `producer`.

        Args:
            number: counts the videos of the session in the order of admission.
            producer: makes the video.
            commands: the session's queue of commands.
            clock: returns seconds; the deadline is measured by it.
            describe: returns all that determines the frames, as JSON values.
            on_end: called on a thread of its own once the sink has all frames it will get.
        """
        self.number, self.producer = number, producer
        self.failure: BaseException | None = None
        """The exception that ended it early, from its sink, decoder, prompt source or autosave."""
        self.started, self.ended = perf_counter(), 0.0
        """When it was admitted and when the sink had all its frames, by `time.perf_counter`."""
        self.describe = describe
        """Returns all that determines the frames; may hash all weights the first time."""
        self._commands, self._clock, self._on_end = commands, clock, on_end
        self._watched_since, self._paused_at = clock(), 0.0
        self._paused = self._closing = False
        self._done, self._asked = threading.Event(), list[Future[State]]()
        self._lock = threading.Lock()
        producer.start(lambda: commands.post(self._notice))

    @property
    def status(self) -> Status:
        """`ending` lasts from the last chunk until its frames are in the sink; `ended` follows."""
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
        return self.producer.made

    @property
    def frames(self) -> int:
        """Frames in the sink, those of an earlier run included."""
        return self.producer.earlier + self.producer.writer.written

    @property
    def deadline(self) -> float:
        """When a viewer from the start will have seen every chunk made so far, or when the pacing says."""
        if self.producer.pacing is not None:
            return self.producer.pacing.deadline(self.producer.made)
        return self._watched_since + self.producer.ahead_seconds

    def pause(self) -> None:
        """Make no more chunks until `resume`; those already made are decoded and written."""
        self._commands.post(self._pause)

    def resume(self) -> None:
        """Make chunks again; the deadline moves by the length of the pause."""
        self._commands.post(self._resume)

    def end(self) -> None:
        """End the video; chunks already made reach the sink, and autosave writes a last state."""
        self._commands.post(self.close)

    def cancel(self) -> None:
        """End the video, discarding what is not written yet; no further state is saved."""
        self._commands.post(self._cancel)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for `timeout` seconds at most; return whether it has."""
        return self._done.wait(timeout)

    def snapshot(self) -> State:
        """The state after the chunk under way; the video itself goes on.

        It waits until all frames before that point are in the sink, and hashes all weights the first time.

        Raises:
            UserError: if the video ends early before that, and so has no such state.
        """
        answer: Future[State] = Future()
        self._commands.post(partial(self._answer, answer))
        state = answer.result().in_main_memory()
        return replace(state, video={**self.describe(), **state.video})

    # The following methods are called by the session, while no chunk is being made.

    def step(self) -> None:
        """Make the next chunk; end the video after its last one, or if it fails."""
        with self._alone():
            self.producer.step()
        if self.failure is not None or self.producer.finished:
            self.close()

    def close(self, *, save: bool = True, failure: Exception | None = None) -> None:
        """End the video; an unfinished one saves its state if `save` is set and there is no `failure`."""
        if self._closing:
            return
        self._closing = True
        self.failure = self.failure or failure
        threading.Thread(target=self._finish, args=(save,), name="video-end", daemon=True).start()

    def _finish(self, save: bool) -> None:
        autosave = self.producer.autosave
        with self._alone():
            if autosave is not None and save and self.failure is None and not self.producer.finished:
                self.producer.save(autosave.save)
        with self._alone():
            self.producer.close()
        self.ended = perf_counter()
        with self._alone():
            self._on_end(self)
        self._done.set()
        self._settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Record an exception as this video's failure, so that it affects no other; the first one counts."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - the owner of the session reads `failure`
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C is meant for all videos
            self.failure = self.failure or error

    def _notice(self) -> None:
        """End the video because something has failed on one of its threads, perhaps while it was paused."""
        with self._alone():
            self.producer.check()
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
        self.producer.drop()
        self.close(save=False)

    def _answer(self, answer: Future[State]) -> None:
        with self._lock:
            self._asked.append(answer)
        if not self._closing:
            with self._alone():
                self.producer.save(partial(_give, answer))
        elif self._done.is_set():
            self._settle()

    def _settle(self) -> None:
        """Answer the requests for a state that are still open at the end."""
        with self._lock:
            asked, self._asked = self._asked, []
        for answer in asked:
            if answer.done():
                continue
            if self.producer.complete and self.failure is None:
                answer.set_result(self._last_state())
            else:
                answer.set_exception(UserError("the video has ended early; there is no state to resume from"))

    def _last_state(self) -> State:
        """The state of a complete video, of which nothing is left to make."""
        nothing = Snapshot(number=self.made, frame=0, forgotten=0, cache=torch.empty(0), past={})
        return State(snapshot=nothing, decoder_state=None, mark=self.producer.writer.sink.mark())


def _give(answer: Future[State], state: State) -> None:
    answer.set_result(state)
