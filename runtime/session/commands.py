"""The thread-safe entrance to a session: commands from any thread, each run between two chunks.

While a chunk is being made, commands wait for the thread that makes it; otherwise the thread that posts a
command runs it at once. So posting never waits for a chunk, and does not need the session to be running.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Command = Callable[[], object]


class CommandQueue:
    """Runs commands in the order in which they were posted, one at a time and none during a chunk."""

    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._lock, self._news = threading.Lock(), threading.Event()
        self._closed = False

    def post(self, command: Command) -> None:
        """Run `command` now, or after the chunk under way; in that case return at once."""
        self._waiting.append(command)
        self._news.set()
        self._run_if_free()

    def close(self) -> None:
        """Let every present and future `wait` return at once."""
        self._closed = True
        self._news.set()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the context no command runs; those posted before it have run."""
        with self._lock:
            self._news.clear()
            if self._closed:  # checked after clearing, so that `close` is never missed
                self._news.set()
            self._run_waiting()
            yield
        self._run_if_free()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until a command is posted, for `seconds` at most.

        Returns at once if one was posted since the last `exclusive` began.
        """
        self._news.wait(seconds)

    def _run_if_free(self) -> None:
        # Whoever holds the lock checks again after releasing it, so no command is left waiting.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                self._run_waiting()
            finally:
                self._lock.release()

    def _run_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft()()
