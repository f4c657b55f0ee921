"""One process at a time for one place: a lock that dies with its process, however that ends.

The lock is the system's (`flock`), held on a file of ours beside the place; the file alone means nothing.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.atomic_files import beside
from plugins.errors import UserError

MARK = b"videomla "
"""The start of a lock file; the id of the process that holds it follows."""


def lock_path(output: Path) -> Path:
    """The file that stands for `output`."""
    return beside(output, ".lock")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Inside, nobody else makes `output`, in this process or another.

    Raises:
        UserError: if somebody else does, or the place cannot be written to.
    """
    path = lock_path(output)
    file = _held(path, output)
    try:
        os.truncate(file, 0)
        os.pwrite(file, MARK + b"%d\n" % os.getpid(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: whoever comes next makes a new one
        os.close(file)


def is_locked(output: Path) -> bool:
    """Whether somebody makes `output` now, as far as can be seen; nothing is written."""
    try:
        file = os.open(lock_path(output), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # not there, or not ours to open
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(file)
    return False


def _held(path: Path, output: Path) -> int:
    """The open lock file at `path`, locked."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another name") from error
        try:
            if _is_ours(file, path, output) and _is_still(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has just let it go and removed it: take the next one


def _is_ours(file: int, path: Path, output: Path) -> bool:
    regular = stat.S_ISREG(os.fstat(file).st_mode)
    found = os.pread(file, 64, 0) if regular else b""
    if not regular or (found and not found.startswith(MARK)):
        raise UserError(f"{path} is not a lock of ours, and is never removed; choose another name")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = found.removeprefix(MARK).decode(errors="replace").strip()
        named = f" (process {holder})" if holder else ""
        raise UserError(f"{output} is being made already{named}; wait, or choose another name") from error
    except OSError as error:
        mend = "choose a place on another file system"
        raise UserError(f"cannot lock {path}: {error.strerror}; {mend}") from error
    return True


def _is_still(file: int, path: Path) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
