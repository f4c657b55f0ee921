"""A thread that does what it is handed, one thing after the other, behind a queue of a few places."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType

Work = Callable[[], None]

CAPACITY = 2
"""Chunks that may wait: enough to hide one slow one, too few to fill memory."""


class Lane:
    """A context manager; `put` waits only when the queue is full, and raises what went wrong before."""

    def __init__(self, name: str, *, capacity: int = CAPACITY, finish: Work | None = None) -> None:
        """Run `finish` at the end, whatever happened."""
        self._queue: queue.Queue[Work | None] = queue.Queue(capacity)
        self._finish = finish
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stalled_seconds, self.stalls = 0.0, 0
        """How long and how often `put` has waited for a place so far."""
        self.busy_seconds = 0.0
        """How long the thread has worked so far."""

    def __enter__(self) -> Lane:
        """Start the thread."""
        self._thread.start()
        return self

    @property
    def depth(self) -> int:
        """Things that wait."""
        return self._queue.qsize()

    def put(self, work: Work) -> None:
        """Queue `work`."""
        self.check()
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            began = time.perf_counter()
            self._queue.put(work)
            self.stalled_seconds += time.perf_counter() - began
            self.stalls += 1

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._failure is None:  # else the queue is only emptied, so that nobody waits for ever
                self._attempt(work)
        if self._finish is not None:
            self._attempt(self._finish)

    def _attempt(self, work: Work) -> None:
        began = time.perf_counter()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - carried to the thread that puts; the first one tells
            self._failure = self._failure or error
        self.busy_seconds += time.perf_counter() - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let everything be done; a failure is raised unless another one already is."""
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self.check()
