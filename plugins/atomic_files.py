"""Writes files and folders that appear whole or not at all: under a temporary name first, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".vmla-tmp"
"""Suffix of files and folders that are being written. Nothing else has it, so leftovers may be deleted."""


def beside(path: Path, ending: str) -> Path:
    """The path of `path`'s name with `ending` behind it, in the same folder."""
    return path.parent / (path.name + ending)


def temporary_path(path: Path) -> Path:
    """The path at which `path` is written before it is renamed."""
    return beside(path, TEMPORARY_SUFFIX)


def remove_temporary(folder: Path) -> None:
    """Remove files and folders that killed processes left unfinished in `folder` and one level below."""
    for left in (*folder.glob(f"*{TEMPORARY_SUFFIX}"), *folder.glob(f"*/*{TEMPORARY_SUFFIX}")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; at the end it replaces `path`.

    If writing fails, `path` stays as it was, and nothing is left beside it. Whatever has the temporary name
    is removed first, because writing would follow a link that somebody put there.

    Raises:
        OSError: if it cannot be written, or if a link, a pipe or a device lies at `path`.
    """
    _refuse_what_is_no_file(path)
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_what_is_no_file(path: Path) -> None:
    """Refuse to replace a pipe or a link: whoever named it means what is behind it."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, "a link is never replaced; name what it points to", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EEXIST, "only a regular file is ever replaced; name another", str(path))


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file that is never seen half-written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `folder` to fill; at the end it is renamed to `folder`.

    `folder` must not exist yet. An unfinished folder that a killed process has left is removed first, and one
    that could not be filled is too.
    """
    temporary = temporary_path(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
