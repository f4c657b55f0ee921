"""A limit on time that leaves things out instead of breaking off in their middle."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Budget:
    """Seconds from now on, spent on things of which each is expected to take as long as the longest yet."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._longest = 0.0

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self._end - self._clock()

    def spend(self, call: Callable[[], dict[str, Any]], heading: dict[str, Any]) -> dict[str, Any]:
        """What `call` gives, or `heading` with a refusal if the time might not suffice."""
        if self.left < self._longest:
            return {**heading, "refused": "no time was left; allow more with --minutes"}
        began = self._clock()
        found = call()
        self._longest = max(self._longest, self._clock() - began)
        return found
