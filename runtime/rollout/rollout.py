"""The rollout: how VideoMLA makes a video of any length, one chunk after the other.

For each chunk: the prompt in force, noise that depends only on (seed, chunk, step), a few denoising
steps that attend to the window in the cache, the frames handed on, and one clean pass at t = 0 whose
entries are committed to the cache. The cache and every other tensor keep their size and place for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.device.cuda_graphs import Pool, captured, graph_pool, replays_of
from runtime.device.threads import using
from runtime.engines.base import Engine
from runtime.prompts.sources import Change, PromptSource
from runtime.rollout.buffers import allocate
from runtime.rollout.decoding import Decoder
from runtime.rollout.recache import Past
from vmla.scheduler import Sampler
from vmla.transformer import StepInputs


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a batch of videos."""

    number: int
    frames: Tensor
    """[B, frames, 3, H, W] in [0, 1]."""
    denoise_seconds: float
    decode_seconds: float


class Passes(NamedTuple):
    """The steps and the clean pass of a chunk: on a GPU, graphs."""

    descend: Callable[[], None]
    keep: Callable[[], None]


class Rollout:
    """One batch of videos in the making: `denoise` and `commit` in turn make chunk after chunk."""

    def __init__(
        self, engine: Engine, prompts: PromptSource, sampler: Sampler,
        *, seeds: Sequence[int], threads: int | None = None, pool: Pool | None = None, graphs: bool = True,
    ) -> None:  # fmt: skip
        """`threads` of a CPU compute, PyTorch's own number if None; `pool` is for the graphs of a GPU.

        Without `graphs`, a GPU is given every operation by itself.
        """
        self._engine, self._prompts, self._sampler, self._seeds = engine, prompts, sampler, seeds
        self._threads = threads
        self._chunks, self.past = engine.layout.chunks, Past(engine.layout)
        self._buffers = allocate(engine, sampler, batch=len(seeds))
        self.buffers = self._buffers[self._chunks.first]
        """Those of the chunk under way."""
        self.number = 0
        """The chunk that is next, or under way."""
        self.frame = 0
        """Its first latent frame, counted from where the history was dropped last (`vmla.cache`)."""
        self.change: Change | None = None
        self._pool = pool or graph_pool(engine.device)
        self._with_graphs = graphs
        self._graphs: dict[tuple[int, bool], Passes] = {}

    @property
    def _passes(self) -> Passes:
        """Those of the window aimed at, made when first needed: a first frame waits for one kind alone."""
        kind = self.buffers.frames, self.buffers.full
        if kind not in self._graphs:
            with self.buffers.spared():
                steps = self._captured(self._steps)
                self._graphs[kind] = Passes(steps, self._captured(self._clean_pass))
        return self._graphs[kind]

    def _captured(self, passes: Callable[[], None]) -> Callable[[], None]:
        return captured(passes, self._engine.device, self._pool) if self._with_graphs else passes

    @property
    def launches(self) -> int | None:
        """The host's so far: replays of graphs and uploads of their data; None where no graph is replayed."""
        replays = replays_of([graph for pair in self._graphs.values() for graph in pair])
        return None if replays is None else replays + sum(one.uploads for one in self._buffers.values())

    @torch.inference_mode()
    def denoise(self) -> Tensor:
        """The clean latents [B, z, F, h, w] of the next chunk."""
        with using(self._threads):
            self._turn_to(self._prompts.at(self.number))
            self._aim(self.frame, self._chunks.length(self.number))
            self.buffers.draw(self._seeds, self.number)
            self._passes.descend()
        return self.buffers.latents.clone()

    @torch.inference_mode()
    def commit(self) -> None:
        """Leave the chunk just denoised in the cache."""
        with using(self._threads):
            self._keep()
        self.past.add(self.number, self.buffers.latents.clone())
        self.number, self.frame = self.number + 1, self.frame + self.buffers.frames

    def _aim(self, frame: int, frames: int) -> None:
        self.buffers = self._buffers[frames]
        self.buffers.aim(frame)

    def _keep(self) -> None:
        if self.buffers.keeps:
            self._passes.keep()

    @torch.inference_mode()
    def _steps(self) -> None:
        latents, context, full = self.buffers.noise[0], self.buffers.context, self.buffers.full
        for step, timestep in enumerate(self.buffers.timesteps):
            velocity = self._engine.step(StepInputs(latents, timestep, *context), full=full)[0]
            latents = self._sampler.advance(latents, velocity, step, self.buffers.fresh(step))
        self.buffers.latents.copy_(latents)

    @torch.inference_mode()
    def _clean_pass(self) -> None:
        inputs = StepInputs(self.buffers.latents, self.buffers.clean, *self.buffers.context)
        self.buffers.commit(self._engine.entries(inputs, full=self.buffers.full))

    def _turn_to(self, change: Change) -> None:
        """Take the prompt; where it is new, its policy says what becomes of the cache."""
        if self.change is None or self.change.prompts != change.prompts:
            self.buffers.text_kv.copy_(self._engine.encode_prompt(change.prompts))
        self.change = change
        if change.chunk == self.number > 0:
            self.frame, again = self.past.turn(change.policy, self.number, self.frame)
            for frame, latents in again:
                self._aim(frame, latents.shape[2])
                self.buffers.latents.copy_(latents)
                self._keep()


def rollout(
    engine: Engine, decoder: Decoder, prompts: PromptSource, sampler: Sampler,
    *, seeds: Sequence[int], chunks: int, threads: int | None = None,
) -> Iterator[Chunk]:  # fmt: skip
    """Make `chunks` chunks of one video for each seed, and yield each as soon as it is decoded."""
    videos = Rollout(engine, prompts, sampler, seeds=seeds, threads=threads)
    for number in range(chunks):
        began = perf_counter()
        if number:
            videos.commit()
        latents = videos.denoise()
        denoised = perf_counter()
        yield Chunk(number, decoder.decode(latents), denoised - began, perf_counter() - denoised)
