"""One process at a time for one place: a lock that dies with its process, however that ends.

The lock is the system's (`flock`), held on a file of ours beside the place; the file alone means nothing.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from plugins.atomic_files import beside
from plugins.errors import UserError

MARK = b"videomla "
"""The start of a lock file; the id of the process that holds it follows."""


def lock_path(output: Path) -> Path:
    """The file that stands for `output`."""
    return beside(output, ".lock")


class Lock:
    """A context manager: inside, nobody else makes `output`, in this process or another."""

    def __init__(self, output: Path, waits: Callable[[str], None] | None = None) -> None:
        """With `waits`, another process that makes `output` is waited for, and `waits` is told so once."""
        self._output, self._waits, self._file = output, waits, -1

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            UserError: if somebody else holds it and is not waited for, or the place cannot be written to.
        """
        self._file = _held(lock_path(self._output), self._output, self._waits)
        try:
            os.truncate(self._file, 0)
            os.pwrite(self._file, MARK + b"%d\n" % os.getpid(), 0)
        except BaseException:
            self.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""
        self.release()

    def release(self) -> None:
        """Let it go, if it is held; a process that is ended at once may do so from any thread."""
        file, self._file = self._file, -1
        if file < 0:
            return
        path = lock_path(self._output)
        if _is_still(file, path):  # before it is let go: whoever comes next makes a new one
            path.unlink(missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the open file too
        os.close(file)


def locked(output: Path) -> AbstractContextManager[None]:
    """Inside, nobody else makes `output`, in this process or another.

    Raises:
        UserError: on entering, if somebody else does, or the place cannot be written to.
    """
    return Lock(output)


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


def _held(path: Path, output: Path, waits: Callable[[str], None] | None) -> int:
    """The open lock file at `path`, locked."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another name") from error
        try:
            _check_ours(file, path)
            if not _taken(file, path, fcntl.LOCK_NB):
                busy = f"{output} is being made already{_holder(file)}"
                if waits is None:
                    raise UserError(f"{busy}; wait, or choose another name")
                waits(f"{busy}; waiting until that is done")
                waits = _silently
                _taken(file, path, 0)
            if _is_still(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has just let it go and removed it: take the next one


def _check_ours(file: int, path: Path) -> None:
    regular = stat.S_ISREG(os.fstat(file).st_mode)
    found = os.pread(file, 64, 0) if regular else b""
    if not regular or (found and not found.startswith(MARK)):
        raise UserError(f"{path} is not a lock of ours, and is never removed; choose another name")


def _taken(file: int, path: Path, flags: int) -> bool:
    """Whether the lock is ours now; without `LOCK_NB` in `flags`, once its holder lets it go."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    except OSError as error:
        mend = "choose a place on another file system"
        raise UserError(f"cannot lock {path}: {error.strerror}; {mend}") from error
    return True


def _holder(file: int) -> str:
    """The process that holds the lock, in words; nothing if it has not written its number yet."""
    number = os.pread(file, 64, 0).removeprefix(MARK).decode(errors="replace").strip()
    return f" (process {number})" if number else ""


def _silently(line: str) -> None:
    """Says nothing: a process that waits has said so, and now waits for another one that was faster."""


def _is_still(file: int, path: Path) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
