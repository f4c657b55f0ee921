"""Writes files and folders that appear whole or not at all: aside first, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".tmp"
"""Suffix of files and folders that are being written; one that is left over may be deleted."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Inside, write to the path given, beside `path`; at the end it replaces `path`.

    If writing fails, `path` stays as it was, and nothing lies beside it.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with atomic_write(path) as aside:
        aside.write_text(text)


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
    aside = folder.with_name(folder.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
