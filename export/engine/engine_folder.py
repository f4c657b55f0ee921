"""The folder of an engine, which appears whole or not at all and takes the place of an older engine.

`plugins.atomic_files.atomic_folder` makes folders that must not exist yet. Engines are built anew, by several
processes at once perhaps, so a temporary folder's name carries the process that builds it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plugins.errors import UserError


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, or is removed if anything fails.

    Unfinished folders of processes that are gone are removed first.

    Raises:
        UserError: if the system refuses to write: the disk is full, or the folder is read-only.
    """
    try:
        with _renamed_at_the_end(folder) as temporary:
            yield temporary
    except OSError as error:
        raise _refusal(folder, error) from error


def make_parent(folder: Path) -> None:
    """Make the folder that `folder` lies in.

    Raises:
        UserError: if the system refuses to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(folder, error) from error


def _refusal(folder: Path, error: OSError) -> UserError:
    what = error.strerror or str(error).partition("\n")[0]
    mend = "nothing of it is left; mend that, or name another with -o"
    return UserError(f"cannot make {folder}: {what}; {mend}")


@contextmanager
def _renamed_at_the_end(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder, lambda process: not _alive(process))
    temporary, old = (folder.parent / f".{folder.name}.{os.getpid()}.{end}" for end in ("building", "old"))
    try:
        temporary.mkdir()
        yield temporary
        # A folder cannot replace one that is not empty. Killed between the two renames, the old engine lies
        # aside under a name by which the next build brings it back.
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
    finally:
        remove_temporary(folder)


def remove_temporary(folder: Path) -> None:
    """Remove what this process has begun beside `folder`.

    Commands do it once more at their end, because a signal may have broken it off, and from another thread
    while they are ended at once.
    """
    _sweep(folder, lambda process: process == os.getpid())


def _sweep(folder: Path, over: Callable[[int], bool]) -> None:
    """Remove the folders beside `folder` whose process is `over`; an old engine that is alone comes back."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)\.(building|old|gone)")
    for left in list(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if not (found := ours.fullmatch(left.name)) or not over(int(found[1])):
            continue
        gone = left.with_suffix(".gone")
        with suppress(OSError):  # another thread was first
            if found[2] == "old" and not folder.exists():
                left.replace(folder)
            if found[2] == "building":  # so that what is half removed cannot take an engine's place
                left.rename(gone)
        for remains in (left, gone):
            shutil.rmtree(remains, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
