"""Files that are opened without waiting, read up to a limit, and refused in one line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from plugins.errors import UserError

LARGEST = 2**24
"""Bytes of a document that are read at most; Python's objects for them take about ten times as much
memory."""
PIECE = 2**20
"""Bytes that are read at once."""


@contextmanager
def opened(path: Path, *, mend: str = "", links: bool = True) -> Iterator[BufferedReader]:
    """A regular file, open for reading its bytes.

    Args:
        path: of the file.
        mend: the error's advice if it is missing.
        links: whether the file may be a link to another one.

    Raises:
        UserError: if it is missing, not to be read, or a folder, a pipe or a device.
    """
    flags = (
        os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    )  # O_NONBLOCK: opening a pipe would wait
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing{mend and f'; {mend}'}") from error
    except (OSError, ValueError) as error:  # a name with a NUL in it
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {said}{mend and f'; {mend}'}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file{mend and f'; {mend}'}")
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        yield file


def open_own(path: Path, *, private: bool = False) -> int:
    """A descriptor of a file of ours for reading and writing, made if it is not there; no content is lost.

    Args:
        path: of the file.
        private: whether nobody but this user may read a new one.

    Raises:
        OSError: if it cannot be, or if a link, a pipe, a folder or a device lies there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags, 0o600 if private else 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_bytes(path: Path, *, mend: str = "", largest: int = LARGEST) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: as `opened`, and for more than `largest` bytes.
    """
    content = bytearray()
    with opened(path, mend=mend) as file:
        try:  # piece by piece: Python asks for the memory of all that it may read
            while len(content) <= largest and (piece := file.read(PIECE)):
                content += piece
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > largest:
        raise _too_large(path, largest)
    return bytes(content)


def check_size(path: Path, *, largest: int = LARGEST) -> None:
    """Refuse a file that another library is about to read, unless it is regular and not too large.

    Raises:
        UserError: as `read_bytes`.
    """
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise _too_large(path, largest)


def _too_large(path: Path, largest: int) -> UserError:
    return UserError(f"{path} has more than {largest:,} bytes, which no such file needs")


def read_text(path: Path, *, mend: str = "", largest: int = LARGEST) -> str:
    """The text of a regular file in UTF-8, with a byte order mark or without.

    Raises:
        UserError: as `read_bytes`, and if the text is not UTF-8.
    """
    try:
        return read_bytes(path, mend=mend, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from error
