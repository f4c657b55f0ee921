"""Hands frames to a sink on a thread of its own, through a queue that holds only a few chunks."""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType

from runtime.sinks import Frames, FrameSink

CAPACITY = 2
"""Chunks that may wait: enough to hide one slow write, too few to fill memory."""


class FrameWriter:
    """A context manager around a sink; `write` waits only when the queue is full."""

    def __init__(self, sink: FrameSink, *, capacity: int = CAPACITY) -> None:
        self._sink = sink
        self._queue: queue.Queue[Frames | None] = queue.Queue(capacity)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="frame-writer")
        self.written = 0
        """Frames that the sink has taken."""
        self.stalled_seconds = 0.0
        """How long `write` has waited for the sink so far."""

    def __enter__(self) -> FrameWriter:
        """Start the thread."""
        self._thread.start()
        return self

    @property
    def depth(self) -> int:
        """Chunks that wait."""
        return self._queue.qsize()

    def write(self, frames: Frames) -> None:
        """Queue [n, H, W, 3] frames; what went wrong with earlier ones is raised here."""
        if self._failure is not None:
            raise self._failure
        began = time.perf_counter()
        self._queue.put(frames)
        self.stalled_seconds += time.perf_counter() - began

    def _run(self) -> None:
        while (frames := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # the queue is still emptied, so that nobody waits for a sink that is gone
            try:
                self._sink.write(frames)
                self.written += len(frames)
            except Exception as error:  # noqa: BLE001 - carried to the thread that writes
                self._failure = error
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - as above; the first failure is the telling one
            self._failure = self._failure or error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the sink finish; its failure is raised unless another one already is."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
