"""Writes the state of a video to disk every few seconds, on a thread of its own."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from runtime.device.worker_thread import WorkerThread
from runtime.resume.sidecar import write_sidecar
from runtime.resume.state import State, save_state, state_path


def resume_command(output: Path) -> str:
    """The command that resumes a stopped video."""
    return shlex.join(["vmla-run", "--resume", str(output)])


class Autosave(WorkerThread):
    """Saves the states of one video; a context manager.

    The first state is due at once, so that nearly every stopped video can be resumed.
    """

    def __init__(
        self,
        output: Path,
        describe: Callable[[], dict[str, Any]],
        *,
        every: float = 5.0,
        saved: bool = False,
        has_older: bool = False,
        fenced: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Save the states of the video `output`.

        Args:
            output: the video.
            describe: returns all that determines its frames, and may take seconds.
            every: seconds between two states; a crash costs at most that much work.
            saved: whether there is a state already, which then is the first.
            has_older: whether there is an older video, whose state and sidecar stay until the new one has
                frames.
            fenced: returns a context in which nobody else writes there; entering it raises if somebody may.
        """
        super().__init__("autosave", capacity=1)
        self._output, self._describe, self._every = output, describe, every
        self._next = time.monotonic() + every if saved else 0.0
        self._under_way, self._has_older, self._fenced = False, has_older, fenced
        self.saved = saved
        """Whether there is a state on disk."""
        self.video: dict[str, Any] | None = None
        """The result of `describe`, once it was called."""

    def __enter__(self) -> Autosave:
        """Start the thread; leaving the block writes the last state that was queued."""
        super().__enter__()
        return self

    @property
    def command(self) -> str:
        """The command that resumes the video."""
        return resume_command(self._output)

    def due(self) -> bool:
        """Whether a state is due; if so, `save` must follow. Earlier failures are raised here."""
        self.check()
        if self._under_way or time.monotonic() < self._next:
            return False
        self._under_way, self._next = True, time.monotonic() + self._every
        return True

    def save(self, state: State) -> None:
        """Write `state` as soon as possible."""
        self.put(lambda: self._write(state))

    def _write(self, state: State) -> None:
        if self._has_older and not state.mark["frames"]:
            self._under_way = False
            return
        if self.video is None:
            self.video = self._describe()
            told = {"complete": False, "frames_written": state.mark["frames"]}
            with self._fenced():
                write_sidecar(self._output, self.video, told)
        try:
            # Prompts may have changed since the video was described; the state knows the latest.
            with self._fenced():
                save_state(state_path(self._output), state, {**self.video, **state.video})
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} (its state, beside it)") from error
        self._under_way, self.saved = False, True
