"""CUDA graphs of chunks: one set for an engine, however many videos it makes.

A graph reads and writes the memory that it was captured with. That is the buffers of one video, which runs
in place while it is the only one. When another video comes, the first moves out into buffers of its own, and
from then on each video's tensors are copied in and its results copied out: 0.2 ms of a chunk of 200 for
`wan-1.3b` at 4 TB/s (arithmetic, not measured).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from runtime.device.cuda_graphs import Replay, captured, graph_pool
from runtime.engines.base import Engine
from runtime.rollout.buffers import Buffers, BuffersByLength, allocate
from vmla.scheduler import Sampler

Kind = tuple[int, int, Sampler]
"""The latent frames of a chunk, the engine's `computation` of its window, and how the chunk is sampled."""


class Graphs(NamedTuple):
    """The two graphs of a kind of chunk."""

    denoise: Callable[[], None]
    update_cache: Callable[[], None]

    @property
    def replayed(self) -> bool:
        """Whether both were captured; on a CPU none ever is."""
        return all(isinstance(graph, Replay) for graph in self)


class Passes(Protocol):
    """The passes of `engine` over a chunk: `runtime.rollout.rollout.ChunkPasses`."""

    engine: Engine

    def denoise(self, buffers: Buffers) -> None:
        """Go from noise to clean latents."""

    def update_cache(self, buffers: Buffers) -> None:
        """Write the entries of the clean pass to the cache."""


class ChunkGraphs:
    """Runs the passes of chunks, as CUDA graphs where these exist or are worth capturing.

    The very first chunk is launched operation by operation: its frames wait for no capture. So is a window
    that fills, when the first of its kind comes, for it may come but once. All videos have the same sampler
    and are of one batch size; one thread runs their chunks, one at a time.
    """

    def __init__(self, passes: Passes, sampler: Sampler) -> None:
        self._passes, self._sampler, self._pool = passes, sampler, graph_pool(passes.engine.device)
        self._seen: set[Kind] = set()
        self._graphs: dict[Kind, Graphs] = {}
        self._buffers: BuffersByLength | None = None
        """The buffers that the graphs were captured with."""
        self._tenant: Callable[[], BuffersByLength | None] = lambda: None
        """Returns the buffers of the video that runs in place, or None once it has ended."""

    def denoise(self, video: BuffersByLength, kind: Kind) -> bool:
        """Denoise the chunk of `kind` in the buffers of `video`; return whether a graph was replayed."""
        if kind not in self._graphs and (kind in self._seen or self._lasts(video, kind)):
            self._capture(video, kind)
        self._seen.add(kind)
        if not self._replays(kind):
            self._passes.denoise(video[kind[0]])
            return False
        own, its = self._moved_in(video, kind)
        self._graphs[kind].denoise()
        if own is not its:
            its.latents.copy_(own.latents)
        return True

    def update_cache(self, video: BuffersByLength, kind: Kind) -> bool:
        """Commit the chunk of `kind` in the buffers of `video`; return whether a graph was replayed."""
        if not self._replays(kind):
            self._passes.update_cache(video[kind[0]])
            return False
        own, its = self._moved_in(video, kind)
        self._graphs[kind].update_cache()
        if own is not its:
            its.cache.copy_(own.cache)
        return True

    def _lasts(self, video: BuffersByLength, kind: Kind) -> bool:
        """Whether the window is full, and so like all that follow, and this is not the very first chunk."""
        return bool(self._seen) and video[kind[0]].held == self._passes.engine.cache_spec.slots

    def _replays(self, kind: Kind) -> bool:
        return kind in self._graphs and self._graphs[kind].replayed

    def _capture(self, video: BuffersByLength, kind: Kind) -> None:
        if self._buffers is None:
            # A copy of the mapping, since `_move_out` puts other buffers into the video's own; and a weak
            # reference, so that an ended video does not stay in memory as the tenant.
            self._buffers, self._tenant = BuffersByLength(video), weakref.ref(video)
        own, _ = self._moved_in(video, kind)
        steps = (partial(each, own) for each in (self._passes.denoise, self._passes.update_cache))
        # Warm-up calls write into the buffers, which hold a video that goes on.
        with own.restored_afterwards():
            device = self._passes.engine.device
            self._graphs[kind] = Graphs(*(captured(step, device, self._pool) for step in steps))

    def _moved_in(self, video: BuffersByLength, kind: Kind) -> tuple[Buffers, Buffers]:
        """Copy the contents of `video`'s buffers into the graphs' own, and return these."""
        assert self._buffers is not None
        own, tenant = self._buffers[kind[0]], self._tenant()
        if tenant is not None and tenant is not video:
            self._move_out(tenant)
        its = video[kind[0]]
        if own is not its:
            own.take(its)
        return own, its

    def _move_out(self, tenant: BuffersByLength) -> None:
        """Give the video that runs in place buffers of its own, with all that it has in these."""
        assert self._buffers is not None
        batch = len(self._buffers[min(self._buffers)].latents)
        fresh = allocate(self._passes.engine, self._sampler, batch=batch)
        for frames, buffers in fresh.items():
            buffers.take(self._buffers[frames])
        tenant.update(fresh)
        self._tenant = lambda: None
