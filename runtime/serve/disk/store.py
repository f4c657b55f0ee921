"""The folder of all streams."""

from __future__ import annotations

import fcntl
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from plugins.errors import UserError
from runtime.serve.disk.folder import Kind, StreamFolder

NAME = re.compile(r"(session|video)_[0-9a-f]{24}")
INCOMING = "incoming-"
"""What begins the name of a state that is just being received."""


class Store:
    """One server has it at a time."""

    def __init__(self, path: Path) -> None:
        """Take it, and make it first if there is none.

        Raises:
            UserError: if that cannot be, or another server has it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot keep streams in {path}: {error.strerror}; name another --store"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(f"another server has {path}; stop it, or name another --store") from error
        for left in path.glob(f"{INCOMING}*"):
            left.unlink()

    def new_name(self, kind: Kind) -> str:
        """A name that nobody guesses."""
        return f"{kind}_{secrets.token_hex(12)}"

    def folder(self, name: str) -> StreamFolder:
        """The folder of the stream `name`.

        Raises:
            ValueError: if that is no name of a stream.
        """
        if not NAME.fullmatch(name):
            raise ValueError("this is no name of a stream")
        return StreamFolder(self.path / name)

    def folders(self) -> Iterator[StreamFolder]:
        """The folders of all streams."""
        for path in sorted(self.path.iterdir()):
            if NAME.fullmatch(path.name):
                yield StreamFolder(path)

    def close(self) -> None:
        """Let another server have it."""
        self._lock.close()
