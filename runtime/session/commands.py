"""The door of a session: commands from any thread, each run between two chunks.

A command is run by whoever comes first: by the thread that makes chunks, once the chunk under way is
made, or by the thread that gives the command, while no chunk is being made. So giving one never waits
for a chunk, and needs no thread that runs the session.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Command = Callable[[], object]


class CommandQueue:
    """Commands in the order in which they were given; one runs at a time, and none during a chunk."""

    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._turn, self._news = threading.Lock(), threading.Event()
        self._closed = False

    def post(self, command: Command) -> None:
        """Run `command` as soon as no chunk is being made; returns at once if one is."""
        self._waiting.append(command)
        self._news.set()
        self._run_if_free()

    def close(self) -> None:
        """From now on nobody waits: whoever would, looks again at what there is to do."""
        self._closed = True
        self._news.set()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no command runs; those that were posted before have run."""
        with self._turn:
            self._news.clear()
            if self._closed:  # looked at after clearing, so that closing is never missed
                self._news.set()
            self._run_waiting()
            yield
        self._run_if_free()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until something was posted since the last turn began, at most so many seconds."""
        self._news.wait(seconds)

    def _run_if_free(self) -> None:
        # Whoever holds the turn looks again after giving it back: no command is left lying.
        while self._waiting and self._turn.acquire(blocking=False):
            try:
                self._run_waiting()
            finally:
                self._turn.release()

    def _run_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft()()
