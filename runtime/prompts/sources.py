"""Where prompts come from. A source is asked before each chunk, so a prompt may change during a video.

A change takes effect between two chunks, under one of three policies for the cache: `keep` leaves its entries
as they are, `recache` recomputes them from the same latents under the new prompt, `reset` drops all but the
sink's.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from plugins.errors import UserError
from vmla.text import check_prompt

Policy = Literal["keep", "recache", "reset"]


@dataclass(frozen=True, kw_only=True)
class PromptChange:
    """From chunk number `chunk` on, the videos of the batch show `prompts`, one each."""

    chunk: int
    prompts: tuple[str, ...]
    policy: Policy = "recache"

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UserError(f"no such policy: {self.policy}; use {', '.join(get_args(Policy))}")
        for prompt in self.prompts:
            check_prompt(prompt)


Heard = Callable[[str, "Receipt"], None]
"""Called when a request is `accepted`, and again when it is `applied` or `superseded`."""


class PromptSource(Protocol):
    """Knows the prompt of every chunk, at the latest when that chunk begins."""

    @property
    def changes(self) -> Sequence[PromptChange]:
        """The changes known so far, in order; the first is at chunk 0."""

    def listen(self, heard: Heard) -> None:
        """Call `heard` for every request from now on, and for those that wait already."""

    def at(self, chunk: int) -> PromptChange:
        """The change in force at chunk number `chunk`, made at it or before."""

    def known_before(self, chunk: int) -> Sequence[PromptChange]:
        """The changes known before `at(chunk)` is called, with any that would begin at `chunk`."""


@dataclass
class Receipt:
    """Tracks a request for another prompt: accepted first, applied later at a chunk."""

    number: int
    """Counted from 1 in the order of acceptance."""
    prompt: str
    policy: Policy
    chunk: int | None = None
    """The chunk at which it is applied; None while that is unknown, or if a later request superseded it."""
    _applied: threading.Event = field(default_factory=threading.Event, repr=False)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it is applied or superseded, for `timeout` seconds at most, and return `chunk`."""
        self._applied.wait(timeout)
        return self.chunk

    def settle(self, chunk: int | None) -> None:
        """Record that it was applied at `chunk`, or with None that it never will be."""
        self.chunk = chunk
        self._applied.set()


class PromptSchedule:
    """Prompts that are all known before the video begins; the first is at chunk 0."""

    def __init__(self, changes: Sequence[PromptChange]) -> None:
        """Schedule `changes`.

        Raises:
            UserError: unless the first is at chunk 0 and each comes after the one before it.
        """
        self.changes = tuple(changes)
        chunks = [change.chunk for change in self.changes]
        if chunks[:1] != [0] or chunks != sorted(set(chunks)):
            raise UserError(f"prompts begin at chunks {chunks}; the first begins at 0, each after the other")
        self._chunks = chunks
        self._heard: Heard | None = None

    def listen(self, heard: Heard) -> None:
        """Report every change but the first as accepted, and each as applied when its chunk begins."""
        self._heard = heard
        for number in range(1, len(self.changes)):
            heard("accepted", self._receipt(number))

    def at(self, chunk: int) -> PromptChange:
        """The latest change at or before `chunk`."""
        number = bisect_right(self._chunks, chunk) - 1
        change = self.changes[number]
        if self._heard is not None and number and change.chunk == chunk:
            self._heard("applied", self._receipt(number))
        return change

    def known_before(self, chunk: int) -> Sequence[PromptChange]:
        """All changes: a schedule knows them from the start."""
        return self.changes

    def _receipt(self, number: int) -> Receipt:
        change = self.changes[number]
        return Receipt(number, change.prompts[0], change.policy, change.chunk)


class FixedPrompts(PromptSchedule):
    """Prompts that stay throughout the video, one for each video of a batch."""

    def __init__(self, *prompts: str) -> None:
        super().__init__([PromptChange(chunk=0, prompts=prompts)])


class LivePrompts:
    """A prompt that any thread may change while the video is made; a change waits for the next chunk.

    Each request is acknowledged by a receipt, which later says at which chunk it was applied.
    """

    def __init__(self, prompt: str) -> None:
        self._lock = threading.Lock()
        self.changes = [PromptChange(chunk=0, prompts=(prompt,))]
        self._waiting: Receipt | None = None
        self._requests = 0
        self._heard: Heard | None = None

    @classmethod
    def continued(cls, changes: Sequence[PromptChange]) -> LivePrompts:
        """The live prompts of a video that goes on with these `changes`.

        Some may begin at chunks that are still to be made: then they begin there, and requests wait for the
        last of them.
        """
        prompts = cls(changes[0].prompts[0])
        prompts.changes = list(changes)
        return prompts

    def listen(self, heard: Heard) -> None:
        """Call `heard` for every request from now on, and for one that waits."""
        self._heard = heard
        if self._waiting is not None:
            heard("accepted", self._waiting)

    def change(self, prompt: str, *, policy: Policy = "recache") -> Receipt:
        """Ask for another prompt. Of several requests before the next chunk, the newest counts.

        Raises:
            UserError: for an empty prompt or an unknown policy.
        """
        PromptChange(chunk=0, prompts=(prompt,), policy=policy)  # raises for an empty prompt
        with self._lock:
            self._requests += 1
            receipt, before = Receipt(self._requests, prompt, policy), self._waiting
            self._waiting = receipt
        self._tell("accepted", receipt)
        if before is not None:
            before.settle(None)
            self._tell("superseded", before)
        return receipt

    def at(self, chunk: int) -> PromptChange:
        """The prompt of `chunk`; a request that waits is applied to it."""
        with self._lock:
            receipt = None if self._known_from(chunk) else self._waiting
            if receipt is not None:
                self._waiting = None
                change = PromptChange(chunk=chunk, prompts=(receipt.prompt,), policy=receipt.policy)
                self.changes = [*self.changes, change] if chunk else [change]
            now = next(change for change in reversed(self.changes) if change.chunk <= chunk)
        if receipt is not None:
            receipt.settle(chunk)
            self._tell("applied", receipt)
        return now

    def known_before(self, chunk: int) -> Sequence[PromptChange]:
        """The changes so far, with a request that waits as one at `chunk`, or after the last of them."""
        with self._lock:
            changes, waiting = self.changes, self._waiting
        if waiting is None:
            return changes
        place = changes[-1].chunk + 1 if self._known_from(chunk) else chunk
        change = PromptChange(chunk=place, prompts=(waiting.prompt,), policy=waiting.policy)
        return [*changes, change] if place else [change]

    def _known_from(self, chunk: int) -> bool:
        """Whether a change is known already that begins at `chunk`, other than the first, or after it."""
        return self.changes[-1].chunk >= chunk > 0

    def _tell(self, state: str, receipt: Receipt) -> None:
        if self._heard is not None:
            self._heard(state, receipt)
