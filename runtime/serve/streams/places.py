"""Decides which streams are in memory: watched ones take precedence over waiting jobs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from runtime.serve.edge.errors import busy
from runtime.serve.edge.metrics import Metrics
from runtime.serve.streams.stream import Stream

COMING_SECONDS = 0.02
"""Seconds between two checks whether a stream has been loaded."""


class Places:
    """Places in memory, for the event loop."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._metrics = most, metrics
        self._held: set[Stream] = set()
        self.queue: deque[Stream] = deque()
        """Jobs that wait for a place."""
        self._wanting = 0
        """Live streams that wait for one."""
        metrics.places.set(most)

    @property
    def free(self) -> int:
        """The number of free places."""
        return self._most - len(self._held)

    async def take(self, stream: Stream) -> None:
        """Take a place for `stream`, if need be from an unwatched stream or a job, which continues later.

        Raises:
            ApiError: if all places belong to streams that are watched.
        """
        self._wanting += 1  # before the wait, so that no job takes the place
        try:
            while self.free <= 0:
                await self._make_room()
            self.hold(stream)
        finally:
            self._wanting -= 1

    async def _make_room(self) -> None:
        if any(not one.resident for one in self._held):
            await asyncio.sleep(COMING_SECONDS)  # it is still being loaded
            return
        other = self._least()
        if other is None:
            raise busy(f"all {self._most} places are taken by streams that are watched; try again later")
        if not other.leaving:
            other.leave("queued" if other.info.kind == "video" else "paused")
        await other.gone()

    def hold(self, stream: Stream) -> None:
        """Give `stream` a place that is free."""
        self._held.add(stream)
        self._metrics.admitted.inc()

    def give_back(self, stream: Stream) -> None:
        """Free the place of `stream`; calling it again does nothing."""
        if stream in self._held:
            self._held.remove(stream)
            self._metrics.released.inc()

    def _least(self) -> Stream | None:
        """The stream to unload first: the live one whose viewers left earliest, or else the youngest job."""
        left = [one for one in self._held if one.info.kind == "session" and not one.viewers]
        jobs = [one for one in self._held if one.info.kind == "video"]
        if left:
            return min(left, key=lambda one: one.left_at)
        return max(jobs, key=lambda one: one.info.created, default=None)

    def next_job(self, is_live: Callable[[Stream], bool]) -> Stream | None:
        """The next job of the queue, if there is a place for it."""
        while self.queue and self.free > self._wanting:
            if is_live(job := self.queue.popleft()):
                return job
        return None
