"""Clean latents of the chunks that the window holds: what its entries can be made from anew."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from runtime.prompts.sources import Policy
from runtime.rollout.buffers import Position
from vmla.cache import CacheLayout


class Past:
    """The chunks of the sink and the newest ones, by their number in the video."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._first = -(-layout.sink // layout.chunk)
        self._newest = -(-layout.history // layout.chunk)
        self.chunks: dict[int, Tensor] = {}
        self.forgotten = 0
        """The chunk before which the history was dropped last; 0 if never."""

    @staticmethod
    def capacity(layout: CacheLayout) -> int:
        """Chunks that are kept at most."""
        return -(-layout.sink // layout.chunk) + -(-layout.history // layout.chunk)

    def add(self, number: int, latents: Tensor) -> None:
        """Chunk `number` [B, z, F, h, w] is made; what left the window goes."""
        self.chunks[number] = latents
        self._keep_from(max(number + 1 - self._newest, self.forgotten))

    def turn(
        self, policy: Policy, number: int, position: Position
    ) -> tuple[Position, list[tuple[Position, Tensor]]]:
        """What a new prompt at chunk `number` at `position` does to the cache.

        Returns:
            The chunk's position now, and the chunks to be committed again before it, each with its own.
        """
        if policy == "reset":
            self.forgotten = number
            self._keep_from(number)
            return self._sink_only(position), []
        return self._replay() if policy == "recache" else (position, [])

    def restore(self, chunks: Mapping[int, Tensor], forgotten: int) -> None:
        """Become what another one was."""
        self.chunks, self.forgotten = dict(chunks), forgotten

    def _replay(self) -> tuple[Position, list[tuple[Position, Tensor]]]:
        """The kept chunks in order, placed as if nothing had ever been between them."""
        again: list[tuple[Position, Tensor]] = []
        position, whole = Position(), not self.forgotten
        for number in sorted(self.chunks):
            if not whole and number >= self.forgotten:
                position, whole = self._sink_only(position), True
            again.append((position, self.chunks[number]))
            position = position.next()
        return position if whole else self._sink_only(position), again

    def _sink_only(self, position: Position) -> Position:
        return Position(0, min(self._layout.sink, position.frames(self._layout)))

    def _keep_from(self, number: int) -> None:
        self.chunks = {n: c for n, c in self.chunks.items() if n < self._first or n >= number}
