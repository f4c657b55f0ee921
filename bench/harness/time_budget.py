"""Two limits on time: a budget that skips work which would not fit, and a limit that interrupts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds after which an overrun is raised once more, in case something swallowed it."""


class Overrun(BaseException):
    """The time limit of `time_limit` is over. Not an `Exception`, or recorders of failures would catch it."""


class Budget:
    """A number of seconds from now on; each call is expected to take as long as the longest so far."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = seconds
        self._end = clock() + seconds
        self._longest = 0.0

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self._end - self._clock()

    def spend(self, call: Callable[[], dict[str, Any]], heading: dict[str, Any]) -> dict[str, Any]:
        """The result of `call`, or `heading` with a refusal if the time might not suffice."""
        if self.left < self._longest:
            return {**heading, "refused": "no time was left; allow more with --minutes"}
        began = self._clock()
        found = call()
        self._longest = max(self._longest, self._clock() - began)
        return found


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Overrun` in the main thread, which must enter this, when `seconds` have passed inside.

    A call that does not return to Python meanwhile is not interrupted; `Overrun` is raised when it does.
    """

    def over(number: int, frame: FrameType | None) -> None:
        raise Overrun

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
