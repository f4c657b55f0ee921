"""Requests for another prompt, by the ids that those who ask give them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from runtime.prompts.sources import Receipt

KNOWN = 1_000
"""Ids of requests that are remembered, so that one that is sent again counts once."""


class Events:
    """Of one stream: which are known, which wait, which were superseded and where."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known: dict[str, None] = {}
        self.superseded: dict[int, list[str]] = {}
        """By the chunk with which another one took effect instead."""
        self._waiting: dict[int, str] = {}
        self._dropped: list[str] = []

    def expect(self, receipt: Receipt, event_id: str) -> None:
        """`event_id` is what its maker calls the request of `receipt`."""
        self.known[event_id] = None
        if len(self.known) > KNOWN:
            self.known.pop(next(iter(self.known)))
        self._waiting[receipt.number] = event_id

    def remember(self, ids: Iterable[str]) -> None:
        """These took effect before; whoever asks again is not heard twice."""
        self.known |= dict.fromkeys(ids)

    def supersede(self, receipt: Receipt) -> None:
        """Another request came before it took effect."""
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
        """The ids of what was asked for before the stream left memory, and is in its state."""
        ids, self._waiting = tuple(self._waiting.values())[-1:], {}
        return ids
