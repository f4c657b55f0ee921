"""Where frames go: a video file, a folder of pictures, or nowhere."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""[n, H, W, 3], red green blue, 0 .. 255."""


class FrameSink(Protocol):
    """Takes the frames of one video in order."""

    def write(self, frames: Frames) -> None:
        """Take [n, H, W, 3] frames.

        Raises:
            OSError: if they cannot be stored; what was stored before stays whole.
        """

    def close(self) -> None:
        """Finish: afterwards all that was written can be read."""


class NullSink:
    """Forgets every frame."""

    def write(self, frames: Frames) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
