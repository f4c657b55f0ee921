"""The cache: which slot holds which latent frame, at which window-relative position, in how many bytes.

Sink frames keep their slots for ever; all others go round a ring, the oldest leaving first. Slots
are never moved: position and validity are data (`slot_index`), and attention does not mind order.

Time is counted in latent frames: a function takes the first frame that a chunk is about to make, and
where it matters how many it makes. Frames are those of the video until its history is dropped on the
way; from there on they are counted anew, beginning after those of the sink, which stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vmla.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ChunkLengths:
    """How a video divides into chunks, in latent frames: all of one length, but for the first perhaps."""

    first: int
    following: int

    def length(self, number: int) -> int:
        """Latent frames of chunk `number` (from 0)."""
        return self.following if number else self.first

    def start(self, number: int) -> int:
        """The first latent frame of chunk `number`: as many as the chunks before it have."""
        return self.first + (number - 1) * self.following if number else 0

    def number_of(self, frame: int) -> int:
        """The chunk that latent frame `frame` is in: as many chunks end before it."""
        return 0 if frame < self.first else 1 + (frame - self.first) // self.following

    def count(self, frames: int) -> int:
        """The fewest chunks that have `frames` latent frames together."""
        return 1 + self.number_of(frames - 1) if frames > 0 else 0

    def frames_of(self, numbers: Iterable[int]) -> list[int]:
        """The latent frames of chunks `numbers`, one chunk after the other."""
        return [self.start(number) + offset for number in numbers for offset in range(self.length(number))]

    def split(self, clip: Tensor, numbers: Sequence[int], *, dim: int = 2) -> tuple[Tensor, ...]:
        """Chunks `numbers`, which `clip` holds one after the other along `dim`."""
        return clip.split([self.length(number) for number in numbers], dim)


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Shape and bookkeeping of the cache, as pure functions of the latent frame (from 0)."""

    sink: int
    history: int
    chunk: int
    tokens_per_frame: int
    entry_width: int
    layers: int
    first_chunk: int = 0
    """Latent frames of a video's first chunk; 0 is as many as the others have."""
    absolute: bool = False
    """Whether positions are those of the video, as Self-Forcing's own code has them: for comparison with it,
    within the length that was trained."""

    @classmethod
    def of(cls, config: ModelConfig) -> CacheSpec:
        """Spec of the cache that a model with `config` needs."""
        return cls(
            sink=config.sink,
            history=config.history,
            chunk=config.chunk,
            tokens_per_frame=config.tokens_per_frame,
            entry_width=config.entry_width,
            layers=config.num_layers,
            first_chunk=config.first_chunk,
            absolute=config.absolute_positions > 0,
        )

    @property
    def chunks(self) -> ChunkLengths:
        """How a video divides into chunks."""
        return ChunkLengths(first=self.first_chunk or self.chunk, following=self.chunk)

    @property
    def slots(self) -> int:
        """Latent frames that the cache holds when full."""
        return self.sink + self.history

    @property
    def positions(self) -> int:
        """Latent frames of a full window: positions in use where they are relative to it."""
        return self.slots + self.chunk

    def shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """The cache's shape [L, B, T, E] for `batch` videos: T is all slots' tokens, E an entry's width."""
        return self.layers, batch, self.slots * self.tokens_per_frame, self.entry_width

    def bytes(self, batch: int = 1, *, element_size: int = 2) -> int:
        """Bytes of the whole cache, known before anything is allocated."""
        return self.bytes_per_token(element_size=element_size) * batch * self.slots * self.tokens_per_frame

    def bytes_per_token(self, *, element_size: int = 2) -> int:
        """Bytes that one token leaves in all layers."""
        return self.layers * self.entry_width * element_size

    def allocate(self, batch: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """A cache [L, B, T, E] of zeros; `slot_index` marks its slots as empty, not their content."""
        return torch.zeros(self.shape(batch), dtype=dtype, device=device)

    def frame_in_slot(self, frame: int) -> list[int]:
        """The latest frame in each slot before `frame` is made, -1 where there is none."""
        frames = [slot if slot < frame else -1 for slot in range(self.sink)]
        for place in range(self.history):
            first = self.sink + place
            frames.append(first + (frame - 1 - first) // self.history * self.history if first < frame else -1)
        return frames

    def evicted(self, frame: int) -> int:
        """How many frames have left the window before `frame` is made."""
        return max(frame - self.slots, 0)

    def shift(self, frame: int) -> int:
        """How many frames positions lag behind the video's own frame numbers when `frame` is made."""
        return 0 if self.absolute else self.evicted(frame)

    def slot_index(self, frame: int) -> Tensor:
        """[slots] int32: the window-relative frame in each slot before `frame` is made, -1 where it is empty.

        Absolute until the cache is full; from then on the sink keeps its place and the history
        closes up behind it, so that no position grows with the video (arXiv 2605.30351, D.5).
        """
        evicted = self.shift(frame)
        held = self.frame_in_slot(frame)
        return torch.tensor([one if one < self.sink else one - evicted for one in held], dtype=torch.int32)

    def chunk_index(self, frame: int, frames: int) -> Tensor:
        """[F] int32: the window-relative frames of a chunk of `frames` from `frame` on."""
        first = frame - self.shift(frame)
        return torch.arange(first, first + frames, dtype=torch.int32)

    def commits(self, frame: int, frames: int) -> tuple[list[int], list[int]]:
        """Which of a chunk's `frames` from `frame` on a commit writes (0 .. F - 1), and into which slots."""
        slot_of: dict[int, int] = {}
        for offset in range(frames):
            made = frame + offset
            in_ring = self.sink + (made - self.sink) % self.history if self.history else None
            slot = made if made < self.sink else in_ring
            if slot is not None:
                # A ring shorter than the chunk is overwritten within it: the latest frame stays.
                slot_of[slot] = offset
        return list(slot_of.values()), list(slot_of)

    def token_indices(self, frame: int, frames: int, *, padded: bool = False) -> tuple[Tensor, Tensor]:
        """`commits` in tokens: rows of the entries, and rows of the cache that they replace.

        With `padded`, the last frame that is written is repeated until there are `frames`, if there is any:
        writing it twice changes nothing, and buffers of a fixed size (CUDA graphs) need as many rows always.
        """
        size = frames if padded else 0
        written, slots = (
            places + places[-1:] * (size - len(places)) for places in self.commits(frame, frames)
        )
        within = torch.arange(self.tokens_per_frame)
        # The dtype is named because without a history most commits write nothing, and an empty list has no
        # type.
        of_frames = (torch.tensor(places, dtype=torch.int64)[:, None] for places in (written, slots))
        source, target = ((places * self.tokens_per_frame + within).flatten() for places in of_frames)
        return source, target

    def commit(self, cache: Tensor, entries: Tensor, frame: int) -> Tensor:
        """A new cache with the clean pass's `entries` [L, B, S, E] of the chunk from `frame` on in place.

        Differentiable, for training; `commit_` writes in place.
        """
        source, target = self._rows(cache, entries, frame)
        return cache.index_copy(2, target, entries.index_select(2, source))

    def commit_(self, cache: Tensor, entries: Tensor, frame: int) -> None:
        """Commit as `commit` does, in place in `cache`."""
        source, target = self._rows(cache, entries, frame)
        cache.index_copy_(2, target, entries.index_select(2, source))

    def _rows(self, cache: Tensor, entries: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        source, target = self.token_indices(frame, entries.shape[2] // self.tokens_per_frame)
        return source.to(cache.device), target.to(cache.device)
