"""Videos of held-out prompts, made in batches, of which only a window before each mark stays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from export.engine.manifest import Manifest
from runtime.engines.base import EagerEngine, Engine
from runtime.engines.compiled import open_engine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import rollout
from vmla.cli.progress import ProgressLine
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import Checkpoint

WINDOW = 64
"""Frames that are graded before each mark."""
BATCH = 24
"""Videos rolled out at once by the eager model."""
Item = TypeVar("Item")


class VideoBatch(NamedTuple, Generic[Item]):
    """Prompts or scenes whose videos are made at once."""

    first: int
    """The number in the run of the first one."""
    items: Sequence[Item]
    seed: int
    """Seed of the first one's video; each later one has the next number."""


def batches(items: Sequence[Item], size: int, *, seed: int) -> list[VideoBatch[Item]]:
    """`items` in batches of `size`; the video of item i has the seed `seed` + i, whatever the size."""
    return [VideoBatch(i, items[i : i + size], seed + i) for i in range(0, len(items), size)]


class Windows:
    """The last `WINDOW` frames before each mark of a stream of frames; all others are dropped."""

    def __init__(self, seconds: tuple[int, ...]) -> None:
        self._ends = {second: second * FRAMES_PER_SECOND for second in seconds}
        self._parts: dict[int, list[Tensor]] = {second: [] for second in seconds}
        self._seen = 0

    def add(self, frames: Tensor) -> None:
        """Frames [B, n, 3, H, W] in [0, 1]."""
        for second, parts in self._parts.items():
            edges = self._ends[second] - WINDOW, self._ends[second]
            first, last = (min(max(edge - self._seen, 0), frames.shape[1]) for edge in edges)
            parts.append(as_bytes(frames[:, first:last]))
        self._seen += frames.shape[1]

    def pop(self) -> Iterator[tuple[int, Tensor]]:
        """Each mark that was passed since the last call, and its window [B, WINDOW, 3, H, W] uint8."""
        for second in sorted(second for second in self._parts if self._ends[second] <= self._seen):
            yield second, torch.cat(self._parts.pop(second), dim=1)


def as_bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as a file would hold them: uint8."""
    return (frames * 255).round().to(torch.uint8)


def seen_rollouts(
    engine: Engine,
    checkpoint: Checkpoint,
    batch: VideoBatch[str],
    seconds: tuple[int, ...],
    *,
    fixed: int | None = None,
    line: ProgressLine,
) -> Iterator[tuple[int, Tensor]]:
    """Roll out the prompts of `batch` at once: each mark, and its windows [made, WINDOW, 3, H, W] uint8.

    An engine makes the `fixed` number of videos that it was built for; those past the prompts show the last
    prompt. Without `fixed`, each prompt has one video.
    """
    made = fixed or len(batch.items)
    decoder = CodecDecoder(checkpoint.codec(), engine.device)
    chunks = engine.cache_spec.chunks.count(-(-max(seconds) * FRAMES_PER_SECOND // 4))
    seeds = range(batch.seed, batch.seed + made)
    asked = FixedPrompts(*batch.items, *[batch.items[-1]] * (made - len(batch.items)))
    windows = Windows(seconds)
    stream = rollout(engine, decoder, asked, checkpoint.sampler(), seeds=seeds, chunks=chunks)
    for chunk in stream:
        windows.add(chunk.frames)
        line.show(f"grades: chunk {chunk.number + 1} of {chunks}, {len(batch.items)} videos")
        yield from windows.pop()


def open_denoiser(checkpoint: Checkpoint, folder: Path | None) -> tuple[Engine, int | None]:
    """The engine in `folder` and its batch, or the eager model in float32, which takes any."""
    if folder is None:
        device = torch.device("cpu")
        text, model = checkpoint.text(), checkpoint.transformer()
        return EagerEngine(model, text, device=device, dtype=torch.float32), None
    batch = Manifest.read(folder).batch
    return open_engine(folder, checkpoint, batch=batch), batch
