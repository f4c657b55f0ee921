"""The cache: which slot holds which latent frame, at which window-relative position, in how many bytes.

Sink frames keep their slots for ever; all others go round a ring, the oldest leaving first. Slots
are never moved: position and validity are data (`slot_index`), and attention does not mind order.

Where a function takes `ahead`, that many frames were in the cache before chunk 0: none in a new
video, those of the sink in one whose history was dropped on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vmla.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """Shape and bookkeeping of the cache, as pure functions of the chunk number (from 0)."""

    sink: int
    history: int
    chunk: int
    tokens_per_frame: int
    entry_width: int
    layers: int

    @classmethod
    def of(cls, config: ModelConfig) -> CacheLayout:
        """The layout of a model's cache."""
        return cls(
            sink=config.sink,
            history=config.history,
            chunk=config.chunk,
            tokens_per_frame=config.tokens_per_frame,
            entry_width=config.entry_width,
            layers=config.num_layers,
        )

    @property
    def slots(self) -> int:
        """Latent frames that the cache holds when full."""
        return self.sink + self.history

    @property
    def positions(self) -> int:
        """Window-relative positions in use, whatever the length of the video."""
        return self.slots + self.chunk

    def shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """[L, B, T, E]."""
        return self.layers, batch, self.slots * self.tokens_per_frame, self.entry_width

    def bytes(self, batch: int = 1, *, element_size: int = 2) -> int:
        """Bytes of the whole cache, known before anything is allocated."""
        return self.bytes_per_token(element_size=element_size) * batch * self.slots * self.tokens_per_frame

    def bytes_per_token(self, *, element_size: int = 2) -> int:
        """Bytes that one token leaves in all layers."""
        return self.layers * self.entry_width * element_size

    def allocate(self, batch: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """An empty cache [L, B, T, E]."""
        return torch.zeros(self.shape(batch), dtype=dtype, device=device)

    def frame_in_slot(self, chunk: int, ahead: int = 0) -> list[int]:
        """The latest frame in each slot before chunk number `chunk` is made, -1 where there is none."""
        made = ahead + chunk * self.chunk
        frames = [slot if slot < made else -1 for slot in range(self.sink)]
        for place in range(self.history):
            first = self.sink + place
            frames.append(first + (made - 1 - first) // self.history * self.history if first < made else -1)
        return frames

    def slot_index(self, chunk: int, ahead: int = 0) -> Tensor:
        """[slots] int32: the window-relative frame in each slot, -1 where it is empty.

        Absolute until the cache is full; from then on the sink keeps its place and the history
        closes up behind it, so that no position grows with the video (arXiv 2605.30351, D.5).
        """
        gone = max(ahead + chunk * self.chunk - self.slots, 0)
        frames = self.frame_in_slot(chunk, ahead)
        relative = [frame if frame < self.sink else frame - gone for frame in frames]
        return torch.tensor(relative, dtype=torch.int32)

    def chunk_index(self, chunk: int, ahead: int = 0) -> Tensor:
        """[F] int32: the window-relative frames of chunk number `chunk` itself."""
        first = min(ahead + chunk * self.chunk, self.slots)
        return torch.arange(first, first + self.chunk, dtype=torch.int32)

    def commits(self, chunk: int, ahead: int = 0) -> tuple[list[int], list[int]]:
        """Which frames of the chunk (0 .. F - 1) a commit keeps, and the slots they go to."""
        slot_of: dict[int, int] = {}
        for offset in range(self.chunk):
            frame = ahead + chunk * self.chunk + offset
            in_ring = self.sink + (frame - self.sink) % self.history if self.history else None
            slot = frame if frame < self.sink else in_ring
            if slot is not None:
                slot_of[slot] = offset  # a ring shorter than the chunk keeps the latest
        return list(slot_of.values()), list(slot_of)

    def token_indices(self, chunk: int, ahead: int = 0, *, frames: int = 0) -> tuple[Tensor, Tensor]:
        """`commits` in tokens: rows of the entries, and rows of the cache that they replace.

        With `frames`, the last frame is written again until there are so many, if there is any: for
        buffers of a fixed size.
        """
        kept, slots = (places + places[-1:] * (frames - len(places)) for places in self.commits(chunk, ahead))
        within = torch.arange(self.tokens_per_frame)
        # Named, because without a history most commits keep nothing, and an empty list has no type.
        of_frames = (torch.tensor(places, dtype=torch.int64)[:, None] for places in (kept, slots))
        source, target = ((places * self.tokens_per_frame + within).flatten() for places in of_frames)
        return source, target

    def commit(self, cache: Tensor, entries: Tensor, chunk: int) -> Tensor:
        """A new cache with the clean pass's `entries` [L, B, S, E] of chunk number `chunk` in place.

        Differentiable, for training; `commit_` writes in place.
        """
        source, target = (index.to(cache.device) for index in self.token_indices(chunk))
        return cache.index_copy(2, target, entries.index_select(2, source))

    def commit_(self, cache: Tensor, entries: Tensor, chunk: int) -> None:
        """As `commit`, into `cache` itself."""
        source, target = (index.to(cache.device) for index in self.token_indices(chunk))
        cache.index_copy_(2, target, entries.index_select(2, source))
