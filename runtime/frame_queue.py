"""Frames for a consumer in this process: a sink on one side, a queue of chunks on the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from runtime.outputs import Frames, Mark

CAPACITY = 2
"""Chunks that may wait before the video waits for its consumer."""


class AbandonedError(Exception):
    """The consumer of the frames has gone."""


class FrameQueue:
    """A sink that holds a few chunks until they are taken; safe to use from any threads."""

    def __init__(self, waiting: Sequence[Frames] = (), *, frames: int = 0) -> None:
        """Start after `frames` earlier frames, of which the chunks `waiting` have not been taken yet."""
        self._waiting, self._made = deque(waiting), frames
        self._taken = frames - sum(map(len, waiting))
        self._changed = threading.Condition()
        self._unbounded, self._over = 0, False
        self.abandoned = False
        """Whether the consumer has gone."""

    def write(self, frames: Frames) -> None:
        """Take [n, H, W, 3] frames as soon as there is a place for them.

        Raises:
            AbandonedError: if the consumer has gone.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < CAPACITY or self._unbounded or self.abandoned)
            if self.abandoned:
                raise AbandonedError("nobody takes the frames of this video any more")
            if len(frames):
                self._waiting.append(frames)
                self._made += len(frames)
            self._changed.notify_all()

    def mark(self) -> Mark:
        """The frames so far, taken or not."""
        return {"frames": self._made}

    def close(self) -> None:
        """Declare that no more frames will come; `take` then returns None after the last."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def take(self) -> Frames | None:
        """The frames of the next chunk, once they are there; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over or self.abandoned)
            if not self._waiting:
                return None
            frames = self._waiting.popleft()
            self._taken += len(frames)
            self._changed.notify_all()
        return frames

    def untaken(self, mark: Mark) -> tuple[Frames, ...]:
        """The chunks that wait of the frames before `mark`."""
        with self._changed:
            left, chunks = mark["frames"] - self._taken, []
            for frames in self._waiting:
                if left <= 0:
                    break
                chunks.append(frames[:left])
                left -= len(frames)
        return tuple(chunks)

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Inside, nothing waits for a place, so that all that is under way comes through."""
        self._add_unbounded(1)
        try:
            yield
        finally:
            self._add_unbounded(-1)

    def _add_unbounded(self, count: int) -> None:
        with self._changed:
            self._unbounded += count
            self._changed.notify_all()

    def abandon(self) -> None:
        """Declare the consumer gone: waiting frames are dropped, further ones refused."""
        with self._changed:
            self.abandoned = True
            self._waiting.clear()
            self._changed.notify_all()
