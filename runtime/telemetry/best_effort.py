"""Optional work, such as writing reports: its first failure ends it, and the video goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Warn = Callable[[str], None]


class BestEffort:
    """Runs the work it is given; at the first OSError it warns, and from then on runs nothing."""

    def __init__(self, path: Path, warn: Warn) -> None:
        """Call `warn` once, when `path` is no longer written."""
        self._path, self._warn, self._over = path, warn, False

    def __call__(self, work: Callable[[], object]) -> None:
        """Run `work`, unless earlier work has failed."""
        if self._over:
            return
        try:
            work()
        except OSError as error:
            self._over = True
            reason = error.strerror or str(error)
            self._warn(f"{self._path} is not written any more: {reason}; the video goes on")
