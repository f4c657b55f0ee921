"""The place a video goes to: chosen and checked before anything is made, left tidy whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path

from plugins.errors import UserError
from runtime.outputs import FrameSink, Mark, NullSink
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.png import PngSink
from runtime.resume.autosave import resume_command
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from vmla.config import FRAMES_PER_SECOND

NOWHERE = Path("null")
WANTED_HEIGHT = 256
"""Pixels that a frame is enlarged to at least, if it is not told otherwise."""


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that frames cannot go to.

    Raises:
        UserError: if it exists already, or its folder does not.
    """
    if path == NOWHERE:
        return
    if path.suffix not in (".mp4", ""):
        raise UserError(f"cannot write {path.suffix} files; use an .mp4 file, a folder for pictures, or null")
    if path.exists() and not overwrite:
        more = f", or go on with it: {resume_command(path)}" if state_path(path).exists() else ""
        raise UserError(f"{path} exists already; choose another name or add --overwrite{more}")
    if path.is_dir() and path.suffix == ".mp4":
        raise UserError(f"{path} is a folder; choose another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")


def clear_output(path: Path) -> None:
    """Remove what an earlier run left at `path`, now that it may be overwritten."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_file():
        path.unlink()
    for beside in (sidecar_path(path), state_path(path)):
        beside.unlink(missing_ok=True)


def open_sink(path: Path, *, scale: int, after: Mark | None = None) -> FrameSink:
    """The sink that `path` names, at its start or where another one left its mark."""
    if path == NOWHERE:
        return NullSink()
    if path.suffix == ".mp4":
        return Mp4Sink(path, frames_per_second=FRAMES_PER_SECOND, scale=scale, after=after)
    return PngSink(path, scale=scale, after=after)


def choose_scale(height: int, wish: int | None) -> int:
    """How many times a frame of `height` pixels is enlarged: small models make small pictures."""
    return wish or max(1, -(-WANTED_HEIGHT // height))
