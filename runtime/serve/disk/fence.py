"""Which of several servers on one folder makes the chunks of a stream.

The right to do so is a lock of the system (`flock`) on a file in the stream's folder. It ends with its
process, however that ends, and nobody can take it from a living process. The file's content is only a hint:
the address of the server that has it. Everything that its holder writes is written inside `Claim.held`,
which refuses once the right is lost, as it can be on a network's file system whose client was cut off.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plugins.documents.regular_file import open_own, read_bytes
from plugins.errors import UserError
from runtime.serve.disk.folder import StreamFolder

MOUNTS = Path("/proc/self/mountinfo")
LOCAL_LOCKS = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
}
"""Mount options under which a lock does not reach other machines, by kind of file system."""
LONGEST = 1_024
"""Bytes of a holder's address that are read at most."""


class ClaimLostError(Exception):
    """Another server makes this stream now; nothing more of it is written here."""

    def __init__(self) -> None:
        super().__init__("another server makes the chunks of this stream now")


class Claim:
    """The right to make the chunks of one stream; usable from any thread."""

    def __init__(self, file: int, said: bytes) -> None:
        """Hold the locked open file, in which `said` was written."""
        self._file: int | None = file
        self._said, self._lock = said, threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context no other server has the claim.

        Raises:
            ClaimLostError: if it was released or lost, or that is unknown (a stale handle of NFS).
        """
        with self._lock:
            if self._file is None or not self._stands(self._file):
                raise ClaimLostError
            yield

    def release(self) -> None:
        """Release the claim; calling it again does nothing."""
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            with suppress(OSError):  # the content is a hint; closing the file releases the lock
                if self._stands(file):
                    os.ftruncate(file, 0)
            with suppress(OSError):
                os.close(file)

    def _stands(self, file: int) -> bool:
        """Whether the file still says that it is ours."""
        try:
            return os.pread(file, LONGEST, 0) == self._said
        except OSError:
            return False


class Fence:
    """Claims of one server, which others reach at `address`, such as `http://10.0.0.2:8000`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def claim(self, folder: StreamFolder) -> Claim | None:
        """The right to the stream in `folder`; None if another server has it, or there is no such folder.

        Raises:
            OSError: if the file system does not tell.
        """
        try:
            file = open_own(folder.owner)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file), folder.owner.stat(follow_symlinks=False)):
                raise FileNotFoundError  # the stream was removed meanwhile
            said = json.dumps({"address": self.address, "claim": secrets.token_hex(8)}).encode()
            os.ftruncate(file, 0)
            os.pwrite(file, said, 0)
        except (BlockingIOError, FileNotFoundError):
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        return Claim(file, said)

    def holder(self, folder: StreamFolder) -> str | None:
        """The address of another server that has the stream; None if nobody has."""
        try:
            said = json.loads(read_bytes(folder.owner, largest=LONGEST))
            address = said["address"]
        except (UserError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not isinstance(address, str) or address == self.address:
            return None
        if (claim := self.claim(folder)) is None:
            return address
        claim.release()  # the server that wrote this has died
        return None


def locks_stay_here(path: Path, mounts: str | None = None) -> str | None:
    """The reason why other machines would not see locks in the folder `path`; None if none is known.

    `mounts` is Linux's list of mounted file systems.
    """
    if mounts is None:
        mounts = MOUNTS.read_text() if MOUNTS.exists() else ""
    best, found = -1, None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point, options, (kind, _, more) = before.split()[4], before.split()[5], after.split()[:3]
        if len(point) >= best and path.resolve().is_relative_to(point):
            best, found = len(point), (kind, {*options.split(","), *more.split(",")})
    if found is None or not (wrong := LOCAL_LOCKS.get(found[0], set()) & found[1]):
        return None
    return f"{found[0]} mounted with {min(wrong)}"
