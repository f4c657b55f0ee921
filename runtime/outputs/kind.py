"""The interface of sinks to the registry: which paths a kind of sink takes, and how it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.outputs import FrameSink


@dataclass(frozen=True, kw_only=True)
class SinkKind:
    """One kind of sink; its file defines it, and `runtime.outputs.registry` names it."""

    what: str
    """What a user is told to name for it, such as `an .mp4 file`."""
    takes: Callable[[Path], bool]
    """Whether it writes to a path; asked before anything is there."""
    open: Callable[..., FrameSink]
    """Opens a sink: `open(path, scale=..., after=...)`, at its start or after the mark of an earlier sink.

    Raises UserError if the video cannot be written or continued there.
    """
    keeps: bool = True
    """Whether the video stays at its path, where it can be resumed; a sidecar and a state lie beside it."""
    pictures: re.Pattern[str] | None = None
    """The names of files in a folder that is a video; None if a video is a single file."""
