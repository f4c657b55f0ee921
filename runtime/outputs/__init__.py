"""Where frames go: a video file, a folder of pictures, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""[n, H, W, 3], red green blue, 0 .. 255."""

Mark = dict[str, int]
"""How far a sink has come, as numbers that its own class understands; `frames` is always one."""


Clear = Callable[[Sequence[Path]], None]
"""Removes what an earlier video left at a place, but for some files that are of the new one already."""


class FrameSink(Protocol):
    """Takes the frames of one video in order."""

    def write(self, frames: Frames) -> None:
        """Take [n, H, W, 3] frames; afterwards they outlive this process, however it ends.

        Raises:
            OSError: if they cannot be stored; what was stored before stays whole.
        """

    def mark(self) -> Mark:
        """Where a later sink of the same place must go on to continue after the frames so far."""

    def close(self) -> None:
        """Finish: afterwards all that was written can be read."""


class NullSink:
    """Forgets every frame."""

    def __init__(self) -> None:
        self._frames = 0

    def write(self, frames: Frames) -> None:
        """Count them."""
        self._frames += len(frames)

    def mark(self) -> Mark:
        """The frames so far."""
        return {"frames": self._frames}

    def close(self) -> None:
        """Nothing."""
