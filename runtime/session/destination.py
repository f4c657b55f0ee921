"""The output path of a video: checked before anything is made, and left tidy whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from plugins.documents.lock import locked
from plugins.errors import UserError
from runtime.outputs import Clear, FrameSink, Mark
from runtime.outputs.registry import kind_of
from runtime.resume.autosave import resume_command
from runtime.resume.sidecar import is_sidecar, sidecar_path, write_begun
from runtime.resume.state import is_state, state_path

LARGEST_SCALE = 16
"""The most by which frames are enlarged."""
WANTED_HEIGHT = 256
"""Pixels of height to which small frames are enlarged by default, at least."""


def is_persistent(path: Path) -> bool:
    """Whether a video written to `path` stays there, with a sidecar; a stream does not."""
    return kind_of(path).persistent


def is_resumable(path: Path) -> bool:
    """Whether a stopped video at `path` can be resumed."""
    return kind_of(path).resumes


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that frames cannot be written to, or that holds something that is not ours to replace.

    Raises:
        UserError: if it exists already, holds what was not made here, or its folder does not exist.
    """
    if not is_persistent(path):
        return
    if path.is_symlink():
        raise UserError(f"{path} is a link to {path.readlink()}; name that instead")
    here = Path.cwd()
    if Path(os.path.realpath(path)) in (here, *here.parents):  # realpath: `path` may lead here through links
        raise UserError(f"{path} is a folder that you work in; name a new one")
    if path.exists() and not overwrite:
        more = f", or resume it: {resume_command(path)}" if state_path(path).exists() else ""
        raise UserError(f"{path} exists already; choose another name or add --overwrite{more}")
    if path.is_dir() and kind_of(path).pictures is None:
        raise UserError(f"{path} is a folder; choose another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")
    if (foreign := _not_ours(path)) is not None:
        raise UserError(f"{foreign} is not of a video made here, so it is not removed; choose another name")


def leftovers(path: Path) -> list[Path]:
    """The files that an earlier video has left at `path` and beside it."""
    at = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        each for each in (*at, sidecar_path(path), state_path(path)) if each.exists() or each.is_symlink()
    ]


def replace_older(path: Path, begun: Mapping[str, Any], spared: Sequence[Path] = ()) -> None:
    """Remove an earlier video's files at `path` and beside it, except those `spared`; a folder itself stays.

    The older sidecar is first replaced by one that describes the video `begun`, so that what lies at `path`
    can be recognised as ours even if the process ends in between.
    """
    write_begun(path, begun)
    for left in leftovers(path):
        if left not in (*spared, sidecar_path(path)):
            left.unlink(missing_ok=True)


def _not_ours(path: Path) -> Path | None:
    """The first file that would have to be removed although nothing shows that it is ours; None if none."""
    left, pictures = leftovers(path), kind_of(path).pictures
    inside = [each for each in left if each.parent == path]
    odd = [each for each in inside if pictures is None or not pictures.fullmatch(each.name)]
    odd += [each for each in left if each.is_symlink() or not each.is_file()]
    if odd or not left:
        return odd[0] if odd else None
    return None if is_sidecar(sidecar_path(path)) or is_state(state_path(path)) else left[0]


@contextmanager
def claimed(output: Path, *, fresh: bool, overwrite: bool) -> Iterator[None]:
    """Within the context no other video can be written to `output`, unless that is a stream.

    Raises:
        UserError: if another video is being made there, or a `fresh` one may not be written there.
    """
    with locked(output) if is_persistent(output) else nullcontext():
        if fresh:
            check_output(output, overwrite=overwrite)
        yield


def open_sink(path: Path, *, scale: int, after: Mark | None = None, clear: Clear | None = None) -> FrameSink:
    """Open the sink that `path` names, at its start or `after` the mark of an earlier one.

    `clear` removes an older output there, once there are frames to take its place.

    Raises:
        UserError: if the video cannot be written there, or the mark is not that of such a sink.
    """
    try:
        return kind_of(path).open(path, scale=scale, after=after, clear=clear)
    except KeyError as error:
        raise UserError(f"the state of {path} does not say its {error}; make it again") from error


def choose_scale(height: int, wish: int | None) -> int:
    """The factor by which frames of `height` pixels are enlarged: `wish`, or enough for `WANTED_HEIGHT`.

    Raises:
        UserError: for a factor that is none.
    """
    if wish is not None and (type(wish) is not int or not 1 <= wish <= LARGEST_SCALE):
        raise UserError(f"scale is {wish!r}; use a whole number from 1 to {LARGEST_SCALE}")
    return wish or max(1, -(-WANTED_HEIGHT // height))
