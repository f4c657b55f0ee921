"""Clean latents of the chunks in the window, from which a new prompt can have its entries recomputed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from runtime.prompts.sources import Policy
from vmla.cache import CacheSpec


class LatentHistory:
    """Clean latents of the sink's chunks and of the newest ones, by their number in the video."""

    def __init__(self, spec: CacheSpec) -> None:
        self._spec = spec
        self._first = spec.chunks.count(spec.sink)
        self._newest = -(-spec.history // spec.chunk)
        self.chunks: dict[int, Tensor] = {}
        self.forgotten = 0
        """The chunk before which the history was dropped last; 0 if never."""

    @staticmethod
    def capacity(spec: CacheSpec) -> int:
        """The most chunks whose latents are held at once."""
        return spec.chunks.count(spec.sink) + -(-spec.history // spec.chunk)

    def add(self, number: int, latents: Tensor) -> None:
        """Add the latents [B, z, F, h, w] of chunk `number`, and drop those that have left the window."""
        self.chunks[number] = latents
        self._drop_before(max(number + 1 - self._newest, self.forgotten))

    def change_prompt(self, policy: Policy, number: int, frame: int) -> tuple[int, list[tuple[int, Tensor]]]:
        """Apply the policy of a new prompt at chunk `number`, which begins at latent frame `frame`.

        Returns:
            The first latent frame of the chunk from now on, and the chunks to commit again before it, each as
            its first latent frame and its latents.
        """
        if policy == "reset":
            self.forgotten = number
            self._drop_before(number)
            return self._sink_only(frame), []
        return self._replay() if policy == "recache" else (frame, [])

    def restore(self, chunks: Mapping[int, Tensor], forgotten: int) -> None:
        """Take over the chunks and the mark of an earlier `LatentHistory`."""
        self.chunks, self.forgotten = dict(chunks), forgotten

    def _replay(self) -> tuple[int, list[tuple[int, Tensor]]]:
        """The chunks that are held, in order, placed as if they followed one another without a gap."""
        again: list[tuple[int, Tensor]] = []
        frame, whole = 0, not self.forgotten
        for number in sorted(self.chunks):
            if not whole and number >= self.forgotten:
                frame, whole = self._sink_only(frame), True
            again.append((frame, self.chunks[number]))
            frame += self._spec.chunks.length(number)
        return frame if whole else self._sink_only(frame), again

    def _sink_only(self, frame: int) -> int:
        """The latent frame at which time restarts without a history: after the frames of the sink."""
        return min(self._spec.sink, frame)

    def _drop_before(self, number: int) -> None:
        """Forget the chunks before `number`, except the sink's."""
        self.chunks = {n: c for n, c in self.chunks.items() if n < self._first or n >= number}
