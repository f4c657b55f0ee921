"""The folder of all streams."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from plugins.documents.regular_file import open_own
from plugins.errors import UserError
from runtime.serve.disk.fence import locks_stay_here
from runtime.serve.disk.folder import Kind, StreamFolder

NAME = re.compile(r"(session|video)_[0-9a-f]{24}")
LOCK, RELAY_KEY = ".lock", ".relay-key"

LONGEST_KEY = 1_024
"""The most bytes of a key that are read."""


class Store:
    """The folder of all streams, owned by one server at a time or shared by several."""

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        """Take the folder for this server, creating it if there is none.

        Raises:
            UserError: if it cannot be used, another server has it, or locks in it do not reach the other
                servers that share it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.fdopen(open_own(path / LOCK), "r+b")
        except OSError as error:
            what = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
            raise UserError(f"cannot keep streams in {path}: {what}; name another --store") from error
        try:
            fcntl.flock(self._lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            mend = "stop it, start both with --shared, or name another --store"
            raise UserError(f"another server has {path}; {mend}") from error
        if shared and (why := locks_stay_here(path)) is not None:
            self._lock.close()
            raise UserError(f"{path} is on {why}: other machines would not see locks; mount it with locking")
        self.relay_key = read_relay_key(path) if shared else None
        """The key by which servers that share the store recognise each other."""

    def new_name(self, kind: Kind) -> str:
        """A new name that cannot be guessed."""
        return f"{kind}_{secrets.token_hex(12)}"

    def folder(self, name: str) -> StreamFolder:
        """The folder of the stream `name`.

        Raises:
            ValueError: if that cannot be the name of a stream.
        """
        if not NAME.fullmatch(name):
            raise ValueError("this is not the name of a stream")
        return StreamFolder(self.path / name)

    def folders(self) -> Iterator[StreamFolder]:
        """The folders of all streams."""
        for path in sorted(self.path.iterdir()):
            if NAME.fullmatch(path.name):
                yield StreamFolder(path)

    def close(self) -> None:
        """Release the store to another server."""
        self._lock.close()


def saved_streams_notice(store: Path) -> str:
    """The last words of a stopped server: where its streams are and how to continue them."""
    return f"streams are kept in {store}; run the same command again to continue them"


def read_relay_key(store: Path) -> str:
    """The key by which servers that share `store` recognise each other; the first server creates it.

    Raises:
        UserError: if it cannot be read.
    """
    path = store / RELAY_KEY
    try:
        store.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(path, private=True), "r+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)  # another server may be writing it
            if not (key := opened.read(LONGEST_KEY)):
                key = secrets.token_urlsafe(32)
                opened.write(key)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name another --store") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a key of ours; name another --store") from error
    return key
