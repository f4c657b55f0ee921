"""What a video can do without: it is done until it fails once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Warn = Callable[[str], None]


class Expendable:
    """Does what it is handed; after the first that the system refuses it warns, and does nothing more."""

    def __init__(self, path: Path, warn: Warn) -> None:
        """`warn` is told, once, that `path` is not written any more."""
        self._path, self._warn, self._over = path, warn, False

    def __call__(self, work: Callable[[], object]) -> None:
        """Do `work`, unless some has failed before."""
        if self._over:
            return
        try:
            work()
        except OSError as error:
            self._over = True
            reason = error.strerror or str(error)
            self._warn(f"{self._path} is not written any more: {reason}; the video goes on")
