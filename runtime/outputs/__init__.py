"""Sinks for frames: a video file, a stream, a folder of pictures, or nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""Frames [n, H, W, 3] uint8: red, green, blue from 0 to 255."""

Mark = dict[str, int]
"""The position of a sink, as numbers that its own class understands; `frames` is always one of them."""


Clear = Callable[[Sequence[Path]], None]
"""Removes the files that an earlier video left at a path, except those that are the new one's already."""


class FrameSink(Protocol):
    """Takes the frames of one video in order."""

    def write(self, frames: Frames) -> None:
        """Take [n, H, W, 3] frames; once this returns, they outlive the process, however it ends.

        Raises:
            OSError: if they cannot be stored; frames stored before stay readable.
        """

    def mark(self) -> Mark:
        """The position from which a later sink of the same path continues after the frames so far."""

    def close(self) -> None:
        """Finish: afterwards all that was written can be read."""


class NullSink:
    """Counts frames and drops them, for `-o null` and for measurements."""

    def __init__(self) -> None:
        self._frames = 0

    def write(self, frames: Frames) -> None:
        """Count [n, H, W, 3] frames and forget them."""
        self._frames += len(frames)

    def mark(self) -> Mark:
        """The number of frames so far."""
        return {"frames": self._frames}

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""


@dataclass(frozen=True, kw_only=True)
class SinkKind:
    """One kind of sink: which paths it takes, how it is opened.

    Its file defines it, and `runtime.outputs.registry` names it.
    """

    what: str
    """How messages describe the paths that select it, such as `an .mp4 file`."""
    takes: Callable[[Path], bool]
    """Whether it writes to a path; asked before anything is there."""
    open: Callable[..., FrameSink]
    """Opens a sink, at its start or after the mark of an earlier one: `open(path, scale=, after=, clear=)`.

    `clear` removes an older output there, once there are frames to take its place.

    Raises UserError if the video cannot be written or continued there.
    """
    persistent: bool = True
    """Whether the video stays at its path, with a sidecar beside it."""
    resumes: bool = True
    """Whether a stopped video can be resumed; only then is its state written."""
    pictures: re.Pattern[str] | None = None
    """The names of files in a folder that is a video; None if a video is a single file."""
