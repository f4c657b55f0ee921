"""Clean latents of the chunks that the window holds: what its entries can be made from anew."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from runtime.prompts.sources import Policy
from vmla.cache import CacheSpec


class Past:
    """The chunks of the sink and the newest ones, by their number in the video."""

    def __init__(self, spec: CacheSpec) -> None:
        self._spec = spec
        self._first = spec.chunks.count(spec.sink)
        self._newest = -(-spec.history // spec.chunk)
        self.chunks: dict[int, Tensor] = {}
        self.forgotten = 0
        """The chunk before which the history was dropped last; 0 if never."""

    @staticmethod
    def capacity(spec: CacheSpec) -> int:
        """Chunks that are kept at most."""
        return spec.chunks.count(spec.sink) + -(-spec.history // spec.chunk)

    def add(self, number: int, latents: Tensor) -> None:
        """Chunk `number` [B, z, F, h, w] is made; what left the window goes."""
        self.chunks[number] = latents
        self._keep_from(max(number + 1 - self._newest, self.forgotten))

    def change_prompt(self, policy: Policy, number: int, frame: int) -> tuple[int, list[tuple[int, Tensor]]]:
        """What a new prompt at chunk `number`, which begins at latent frame `frame`, does to the cache.

        Returns:
            The chunk's first frame now, and the chunks to be committed again before it, each with its own.
        """
        if policy == "reset":
            self.forgotten = number
            self._keep_from(number)
            return self._sink_only(frame), []
        return self._replay() if policy == "recache" else (frame, [])

    def restore(self, chunks: Mapping[int, Tensor], forgotten: int) -> None:
        """Become what another one was."""
        self.chunks, self.forgotten = dict(chunks), forgotten

    def _replay(self) -> tuple[int, list[tuple[int, Tensor]]]:
        """The kept chunks in order, placed as if nothing had ever been between them."""
        again: list[tuple[int, Tensor]] = []
        frame, whole = 0, not self.forgotten
        for number in sorted(self.chunks):
            if not whole and number >= self.forgotten:
                frame, whole = self._sink_only(frame), True
            again.append((frame, self.chunks[number]))
            frame += self._spec.chunks.length(number)
        return frame if whole else self._sink_only(frame), again

    def _sink_only(self, frame: int) -> int:
        """Where time begins anew without a history: after those of `frame` frames that are in the sink."""
        return min(self._spec.sink, frame)

    def _keep_from(self, number: int) -> None:
        self.chunks = {n: c for n, c in self.chunks.items() if n < self._first or n >= number}
