"""Says when a video's next chunk is wanted, and how urgently, as viewers come, lag and leave."""

from __future__ import annotations

from typing import Protocol


class Pacing(Protocol):
    """Asked between two chunks by the thread that makes them; must answer without waiting."""

    def wanted(self, made: int) -> bool:
        """Whether another chunk is wanted once `made` are denoised."""

    def deadline(self, made: int) -> float:
        """When viewers will have played the first `made` chunks, in seconds of the session's clock."""
