"""A thread that runs callables one after the other, behind a queue of a few places."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

Work = Callable[[], None]

CAPACITY = 2
"""Chunks that may wait: enough to hide one slow chunk, too few to fill memory."""


class WorkerThread:
    """A context manager. `put` blocks only while the queue is full, and raises an earlier failure."""

    def __init__(self, name: str, *, capacity: int = CAPACITY, finish: Work | None = None) -> None:
        """Name the thread; it runs `finish` at its end, even after a failure."""
        self._waiting: deque[Work | None] = deque()
        self._capacity, self._changed = capacity, threading.Condition()
        self._finish = finish
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.on_failure: Callable[[], None] | None = None
        """Called once, on the worker thread, when something has failed."""
        self.stalled_seconds, self.stalls = 0.0, 0
        """How long and how often callers have waited for a place so far."""
        self.busy_seconds = 0.0
        """Seconds that the thread has spent working so far."""

    def __enter__(self) -> WorkerThread:
        """Start the thread; leaving the block waits until the queue is empty."""
        self._thread.start()
        return self

    @property
    def depth(self) -> int:
        """The number of callables that wait in the queue."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that `put` would block."""
        return self.depth >= self._capacity

    def put(self, work: Work, *, even_if_full: bool = False) -> None:
        """Queue `work`, waiting for a place unless `even_if_full`.

        Raises:
            Exception: whatever earlier work has raised.
        """
        self.check()
        with self._changed:
            if self.full and not even_if_full:
                began = time.perf_counter()
                self._changed.wait_for(lambda: not self.full)
                self.stalled(time.perf_counter() - began)
            self._append(work)

    def stalled(self, seconds: float, *, again: bool = False) -> None:
        """Count a wait of `seconds` for a place; with `again` it continues an earlier wait."""
        self.stalled_seconds += seconds
        self.stalls += not again

    def check(self) -> None:
        """Raise the first exception that work has raised, if any."""
        if self._failure is not None:
            raise self._failure

    def _append(self, work: Work | None) -> None:
        with self._changed:
            self._waiting.append(work)
            self._changed.notify_all()

    def _pop(self) -> Work | None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) > 0)
            work = self._waiting.popleft()
            self._changed.notify_all()
        return work

    def _run(self) -> None:
        while (work := self._pop()) is not None:
            # After a failure the queue is only emptied, so that no caller of `put` waits for ever.
            if self._failure is None:
                self._attempt(work)
        if self._finish is not None:
            self._attempt(self._finish)

    def _attempt(self, work: Work) -> None:
        began = time.perf_counter()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that puts; the first one tells
            if self._failure is None:
                self._failure = error
                if self.on_failure is not None:
                    self.on_failure()
        self.busy_seconds += time.perf_counter() - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish everything in the queue; a failure is raised unless an exception is already under way."""
        self._append(None)
        self._thread.join()
        if error is None:
            self.check()
