"""Writes files and folders that appear whole or not at all: aside first, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".vmla-tmp"
"""Suffix of files and folders that are being written. Nothing else has it, so leftovers may be deleted."""


def beside(path: Path, ending: str) -> Path:
    """The path of `path`'s name with `ending` behind it, in the same folder."""
    return path.parent / (path.name + ending)


def aside_of(path: Path) -> Path:
    """Where `path` is written before it is renamed."""
    return beside(path, ASIDE)


def remove_asides(folder: Path) -> None:
    """Remove files and folders that killed processes left aside in `folder` and one level below."""
    for left in (*folder.glob(f"*{ASIDE}"), *folder.glob(f"*/*{ASIDE}")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Inside, write to the path given, beside `path`; at the end it replaces `path`.

    If writing fails, `path` stays as it was, and nothing is left beside it. Whatever has the name aside is
    removed first, because writing would follow a link that somebody put there.

    Raises:
        OSError: if it cannot be written, or if a link, a pipe or a device lies at `path`.
    """
    _refuse_what_is_no_file(path)
    aside = aside_of(path)
    aside.unlink(missing_ok=True)
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _refuse_what_is_no_file(path: Path) -> None:
    """Refuse to replace what is no file: who wrote a pipe's or a link's name means what is behind it."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, "a link is never replaced; name what it points to", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EEXIST, "what is no regular file is never replaced; name another", str(path))


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file that is never seen half-written."""
    with atomic_write(path) as aside:
        aside.write_bytes(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Inside, fill the new folder given, beside `folder`; at the end it is renamed to `folder`.

    `folder` must not exist yet. A folder aside that a killed process has left is removed first, and one that
    could not be filled is too.
    """
    aside = aside_of(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
