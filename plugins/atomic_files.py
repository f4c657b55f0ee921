"""Files and folders that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".tmp"
"""What ends the name of a file or folder that is being written: one that is found later is no loss."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes the place of `path` at the end.

    Where the writing fails, `path` stays as it was.
    """
    aside = path.with_name(path.name + ASIDE)
    yield aside
    aside.replace(path)


def atomic_write_text(path: Path, text: str) -> None:
    """As `Path.write_text`, at once."""
    with atomic_write(path) as aside:
        aside.write_text(text)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """As `Path.write_bytes`, at once."""
    with atomic_write(path) as aside:
        aside.write_bytes(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which is renamed to it at the end; there must be no such folder yet.

    What a process that was killed has left aside is removed first.
    """
    aside = folder.with_name(folder.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(folder)
