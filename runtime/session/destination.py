"""The place a video goes to: chosen and checked before anything is made, left tidy whatever happens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from plugins.errors import UserError
from runtime.outputs import Clear, FrameSink, Mark, NullSink
from runtime.outputs.lock import locked
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.png import PngSink
from runtime.outputs.stream import StreamSink, is_stream
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


def is_kept(path: Path) -> bool:
    """Whether a video at `path` stays there, with a sidecar and a state, and can be gone on with."""
    return path != NOWHERE and not is_stream(path)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that frames cannot go to, or where something lies that is not ours to replace.

    Raises:
        UserError: if it exists already, is no file or folder of ours, or its folder does not exist.
    """
    if not is_kept(path):
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


def clear_output(path: Path, keep: Sequence[Path] = ()) -> None:
    """Remove the files that an earlier video left at `path` and beside it, but `keep`; a folder stays."""
    for left in leftovers(path):
        if left not in keep:
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


@contextmanager
def claimed(output: Path, *, fresh: bool, overwrite: bool) -> Iterator[None]:
    """Inside, `output` is this video's alone, where it is a place that keeps videos.

    Raises:
        UserError: if another video is being made there, or a `fresh` one may not be.
    """
    with locked(output) if is_kept(output) else nullcontext():
        if fresh:
            check_output(output, overwrite=overwrite)
        yield


def open_sink(path: Path, *, scale: int, after: Mark | None = None, clear: Clear | None = None) -> FrameSink:
    """The sink that `path` names, at its start or where another one left its mark.

    `clear` removes what lies there, once there are frames to take its place.
    """
    if path == NOWHERE:
        return NullSink()
    if is_stream(path):
        return StreamSink(path, frames_per_second=FRAMES_PER_SECOND, scale=scale)
    if path.suffix.lower() == MP4:
        rate = FRAMES_PER_SECOND
        return Mp4Sink(path, frames_per_second=rate, scale=scale, after=after, clear=clear)
    return PngSink(path, scale=scale, after=after, clear=clear)


def choose_scale(height: int, wish: int | None) -> int:
    """How many times a frame of `height` pixels is enlarged: small models make small pictures."""
    return wish or max(1, -(-WANTED_HEIGHT // height))
