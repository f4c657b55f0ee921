"""Checks that the file being written is still at its path: not moved, removed or replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class LostOutputError(OSError):
    """The file or folder that was being written is no longer at its path."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ESTALE, f"{path} was moved, removed or replaced meanwhile")


def check_presence(path: Path, known: os.stat_result) -> None:
    """Refuse to go on if `path` is no longer the file that `known` describes.

    Raises:
        LostOutputError: if it is gone, or another file.
    """
    try:
        there = os.path.samestat(path.stat(), known)
    except OSError:
        there = False
    if not there:
        raise LostOutputError(path)
