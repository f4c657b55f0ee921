"""A viewer of a stream: where it is, and how far ahead of it chunks may be made."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

LEAD = 3
"""Chunks that are made ahead of those that a viewer has taken, so that it never waits for a single slow
one."""
AHEAD_SECONDS = 3.0
"""Seconds that an endless stream is ahead of real time, for viewers that do not report their position."""


class Viewer:
    """A viewer's position in a stream; changed on the event loop, read by the thread that makes chunks."""

    def __init__(
        self, *, next: int, endless: bool, chunk_seconds: float, clock: Callable[[], float],
        buffer_seconds: float | None = None,
    ) -> None:  # fmt: skip
        """A viewer that takes chunk `next` first.

        Args:
            next: the number of the chunk that it takes next.
            endless: whether the stream is; then it is made no faster than it is played.
            chunk_seconds: how long a chunk lasts when it is played.
            clock: returns seconds.
            buffer_seconds: the video that it wants beyond its reported position; see `played`.
        """
        self.next, self._clock, self._chunk_seconds = next, clock, chunk_seconds
        self._buffer, self._endless = buffer_seconds, endless
        self._began, self._from = clock(), next
        self._position: float | None = None
        self.news = asyncio.Event()
        """Set whenever the stream has changed."""

    def played(self, seconds: float) -> None:
        """Note that the viewer shows the frame at `seconds`; an earlier time is ignored."""
        self._position = max(self._position or 0.0, seconds)

    def limit(self) -> int:
        """The number of the chunk before which making may go on for this viewer."""
        most = self.next + LEAD
        if self._buffer is not None:
            since = self._from * self._chunk_seconds if self._position is None else self._position
            return min(most, self._chunks(since + self._buffer))
        if self._endless:
            played = self._clock() - self._began + AHEAD_SECONDS
            return min(most, self._from + self._chunks(played))
        return most

    def _chunks(self, seconds: float) -> int:
        return max(1, math.ceil(seconds / self._chunk_seconds))
