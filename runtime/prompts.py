"""Where prompts come from: asked anew before each chunk, so that a prompt may change on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PromptSource(Protocol):
    """What each chunk shall show."""

    def at(self, chunk: int) -> Sequence[str]:
        """One prompt for each video of the batch, for chunk number `chunk`."""


class FixedPrompts:
    """The same prompts for the whole video."""

    def __init__(self, *prompts: str) -> None:
        self._prompts = prompts

    def at(self, chunk: int) -> Sequence[str]:
        """The prompts."""
        return self._prompts
