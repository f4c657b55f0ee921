"""Requests for another prompt, by the ids that clients give them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from runtime.prompts.sources import Receipt

KNOWN = 1_000
"""Request ids that are remembered, so that a request sent twice counts once."""


class Events:
    """The requests for another prompt in one stream: known, waiting, and superseded ones with their chunk."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known: dict[str, None] = {}
        self.superseded: dict[int, list[str]] = {}
        """Ids of superseded requests, by the chunk at which another took effect instead."""
        self._waiting: dict[int, str] = {}
        self._dropped: list[str] = []

    def expect(self, receipt: Receipt, event_id: str) -> None:
        """Remember that the client calls the request of `receipt` by `event_id`."""
        self.known[event_id] = None
        if len(self.known) > KNOWN:
            self.known.pop(next(iter(self.known)))
        self._waiting[receipt.number] = event_id

    def remember(self, ids: Iterable[str]) -> None:
        """Note ids that took effect earlier, so that a repeated request is ignored."""
        self.known |= dict.fromkeys(ids)

    def supersede(self, receipt: Receipt) -> None:
        """Note that another request came before this one took effect."""
        if (event := self._waiting.pop(receipt.number, None)) is not None:
            self._dropped = [*self._dropped[-KNOWN:], event]

    def apply(self, receipt: Receipt, chunk: int) -> tuple[str, ...]:
        """Note that the prompt takes effect at `chunk`; returns the ids of the changes."""
        if self._dropped:
            self.superseded[chunk], self._dropped = self._dropped, []
            if len(self.superseded) > KNOWN:
                self.superseded.pop(next(iter(self.superseded)))
        event = self._waiting.pop(receipt.number, None)
        return () if event is None else (event,)

    def at_rest(self) -> tuple[str, ...]:
        """The ids of requests made before the stream left memory, which its state holds."""
        ids, self._waiting = tuple(self._waiting.values())[-1:], {}
        return ids
