"""The place a video goes to: chosen and checked before anything is made, left tidy whatever happens."""

from __future__ import annotations

import re
from pathlib import Path

from plugins.errors import UserError
from runtime.outputs import Frames, FrameSink, Mark, NullSink
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.png import PngSink
from runtime.resume.autosave import resume_command
from runtime.resume.sidecar import is_sidecar, sidecar_path
from runtime.resume.state import is_state, state_path
from vmla.config import FRAMES_PER_SECOND

NOWHERE = Path("null")
MP4 = ".mp4"
"""A file name's ending, in letters of any case."""
PICTURE = re.compile(r"\d{6,}\.png(\.tmp)?|next\.tmp")
"""What a folder of pictures holds: pictures, and one that was being written when its process was killed."""
WANTED_HEIGHT = 256
"""Pixels that a frame is enlarged to at least, if it is not told otherwise."""


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that frames cannot go to, or where something lies that is not ours to replace.

    Raises:
        UserError: if it exists already, is no file or folder of ours, or its folder does not exist.
    """
    if path == NOWHERE:
        return
    if path.suffix.lower() not in (MP4, ""):
        raise UserError(f"cannot write {path.suffix} files; use an .mp4 file, a folder for pictures, or null")
    if path.is_symlink():
        raise UserError(f"{path} is a link to {path.readlink()}; name that instead")
    here = Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise UserError(f"{path} is a folder that you work in; name a new one")
    if path.exists() and not overwrite:
        more = f", or go on with it: {resume_command(path)}" if state_path(path).exists() else ""
        raise UserError(f"{path} exists already; choose another name or add --overwrite{more}")
    if path.is_dir() and path.suffix.lower() == MP4:
        raise UserError(f"{path} is a folder; choose another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")
    if (foreign := _not_ours(path)) is not None:
        raise UserError(f"{foreign} is not of a video made here, and is never removed; choose another name")


def leftovers(path: Path) -> list[Path]:
    """What an earlier video left at `path` and beside it."""
    at = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        each for each in (*at, sidecar_path(path), state_path(path)) if each.exists() or each.is_symlink()
    ]


def clear_output(path: Path) -> None:
    """Remove the files that an earlier video left at `path` and beside it; a folder stays."""
    for left in leftovers(path):
        left.unlink(missing_ok=True)


def _not_ours(path: Path) -> Path | None:
    """The first of the leftovers that nothing shows to be ours: it would have to be removed."""
    left = leftovers(path)
    inside = [each for each in left if each.parent == path]
    odd = [each for each in inside if not PICTURE.fullmatch(each.name)]
    odd += [each for each in left if each.is_symlink() or not each.is_file()]
    if odd or not left:
        return odd[0] if odd else None
    return None if is_sidecar(sidecar_path(path)) or is_state(state_path(path)) else left[0]


class Replacing:
    """A sink whose place is cleared of an earlier video only once the new one has frames."""

    def __init__(self, sink: FrameSink, path: Path) -> None:
        self._sink, self._path, self._cleared = sink, path, False

    def write(self, frames: Frames) -> None:
        """See `FrameSink.write`."""
        if len(frames) and not self._cleared:
            clear_output(self._path)
            self._cleared = True
        self._sink.write(frames)

    def mark(self) -> Mark:
        """See `FrameSink.mark`."""
        return self._sink.mark()

    def close(self) -> None:
        """See `FrameSink.close`."""
        self._sink.close()


def open_sink(path: Path, *, scale: int, after: Mark | None = None) -> FrameSink:
    """The sink that `path` names, at its start or where another one left its mark."""
    if path == NOWHERE:
        return NullSink()
    try:
        if path.suffix.lower() == MP4:
            return Mp4Sink(path, frames_per_second=FRAMES_PER_SECOND, scale=scale, after=after)
        return PngSink(path, scale=scale, after=after)
    except KeyError as error:
        raise UserError(f"the state of {path} does not say its {error}; make it anew") from error


def choose_scale(height: int, wish: int | None) -> int:
    """How many times a frame of `height` pixels is enlarged: small models make small pictures."""
    return wish or max(1, -(-WANTED_HEIGHT // height))
