"""Says when a stream's chunks are wanted: as far ahead as its viewers allow, or in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from runtime.serve.streams.viewer import LEAD, Viewer

BACKGROUND = 1e12
"""A deadline in seconds, later than that of any viewer."""
PATIENCE_SECONDS = 5.0
"""Seconds after which a video's first chunk no longer gives way to videos that are being watched."""


class LivePacing:
    """Chunks are made for the viewer that is furthest ahead; the others read the file."""

    def __init__(
        self, *, chunk_seconds: float, clock: Callable[[], float], missed: Callable[[], None]
    ) -> None:
        """Call `missed` when a chunk comes too late to be played without a gap."""
        self._seconds, self._clock, self._missed = chunk_seconds, clock, missed
        self._viewers: tuple[Viewer, ...] = ()
        self._idle = LEAD
        self._made: int | None = None
        self._due, self._asked = clock(), clock()

    def watch(self, viewers: Iterable[Viewer], *, idle: int) -> None:
        """Set who watches; while nobody does, no chunk from `idle` on is made."""
        self._idle, self._viewers = idle, tuple(viewers)

    def wanted(self, made: int) -> bool:
        """See `Pacing.wanted`: up to the viewers' limits, or the first chunks if nobody watches."""
        wanted = made < max((viewer.limit() for viewer in self._viewers), default=self._idle)
        if not wanted:
            self._asked = self._clock()
        return wanted

    def deadline(self, made: int) -> float:
        """The time at which a viewer who takes each chunk as soon as it is made has played the last one.

        A first chunk may take many more denoising steps than the others. So before there is one, this is a
        chunk's length from now, but never more than `PATIENCE_SECONDS` after the first question: a stream
        that would run dry earlier goes first, and nobody waits for ever.
        """
        now = self._clock()
        if self._made is None:
            self._made, self._due = made, now
        if made == 0:
            return min(now + self._seconds, self._due + PATIENCE_SECONDS)
        if made > self._made:
            if self._made > 0 and now > max(self._due, self._asked) + self._seconds:
                self._missed()
            self._due = max(self._due, now) + (made - self._made) * self._seconds
            self._made = made
        return self._due


class BackgroundPacing:
    """Chunks are made when no viewer needs any, first for the video that has the fewest."""

    def __init__(self, *, chunk_seconds: float) -> None:
        self._seconds = chunk_seconds

    def wanted(self, made: int) -> bool:
        """Return True: a chunk is always wanted."""
        return True

    def deadline(self, made: int) -> float:
        """See `Pacing.deadline`: later than any viewer's, and by the number of chunks."""
        return BACKGROUND + made * self._seconds
