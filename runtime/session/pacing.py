"""When a server wants a video's next chunk, and how urgently: viewers come, lag and leave."""

from __future__ import annotations

from typing import Protocol


class Pacing(Protocol):
    """Asked by the thread that makes chunks, between two of them; answers at once."""

    def wanted(self, made: int) -> bool:
        """Whether another chunk is wanted once `made` are denoised."""

    def deadline(self, made: int) -> float:
        """When the `made` chunks are used up, in seconds of the session's clock."""
