"""Which replica makes which session. Its answers only save a hop; correctness never depends on them.

The lock on a session's folder decides (`runtime.serve.disk.fence`); a replica that is asked for what another
makes passes it on, and one that is asked for what nobody makes goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

SILENT_SECONDS = 3.0
"""Seconds without a report after which a replica counts as dead: fifteen reports."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load that a replica reports."""

    sessions: frozenset[str]
    """Sessions and jobs in its memory."""
    places: int
    """How many streams it can hold."""
    ready: bool
    """Whether it accepts new sessions."""


@dataclass
class _Entry:
    load: Load
    heard: float
    given: int = 0
    """New sessions that were sent there since its last report."""


@dataclass
class ReplicaTable:
    """All replicas by their addresses; one for a cluster, as a named actor."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def report(self, address: str, load: Load) -> None:
        """Note the load of the replica at `address`, and that it is alive."""
        self._entries[address] = _Entry(load, self.clock())

    def leave(self, address: str) -> None:
        """Forget the replica at `address`."""
        self._entries.pop(address, None)

    def find(self, session: str | None, failed: Collection[str] = (), *, begins: bool = True) -> str | None:
        """Where `session` is made, else the replica that has most places left; None if there is none.

        Those that `failed` come last: they may only be busy. Without a `session`, the request `begins` one,
        which takes a place there until the replica reports; else it is about none and takes no place.
        """
        there = self._alive()
        for address, entry in there.items():
            if session in entry.load.sessions and address not in failed:
                return address
        able = [one for one, entry in there.items() if entry.load.ready and one not in failed]
        if not able:
            return None
        best = max(able, key=lambda one: self._left(there[one]))
        there[best].given += session is None and begins
        return best

    def loads(self) -> dict[str, Load]:
        """The loads of the replicas that are alive, by their addresses."""
        return {address: entry.load for address, entry in self._alive().items()}

    def _alive(self) -> dict[str, _Entry]:
        oldest = self.clock() - SILENT_SECONDS
        return {address: entry for address, entry in self._entries.items() if entry.heard >= oldest}

    @staticmethod
    def _left(entry: _Entry) -> int:
        return entry.load.places - len(entry.load.sessions) - entry.given
