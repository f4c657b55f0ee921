"""The rollout: how VideoMLA makes a video of any length, one chunk after the other.

For each chunk: the prompt in force, noise that depends only on (seed, chunk, step), a few denoising
steps that attend to the window in the cache, the frames handed on, and one clean pass at t = 0 whose
entries are committed to the cache. The cache and every other tensor keep their size and place for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from runtime.buffers import Buffers, Position
from runtime.cores import using
from runtime.cuda import Pool, captured, graph_pool, replays_of
from runtime.decoding import Decoder
from runtime.engine import Engine
from runtime.past import Past
from runtime.prompts import Change, PromptSource
from vmla.sampler import Sampler


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a batch of videos."""

    number: int
    frames: Tensor
    """[B, frames, 3, H, W] in [0, 1]."""
    denoise_seconds: float
    decode_seconds: float


class Rollout:
    """One batch of videos in the making: `denoise` and `commit` in turn make chunk after chunk."""

    def __init__(
        self, engine: Engine, prompts: PromptSource, sampler: Sampler,
        *, seeds: Sequence[int], threads: int | None = None, pool: Pool | None = None,
    ) -> None:  # fmt: skip
        """`threads` of a CPU compute, PyTorch's own number if None; `pool` is for the graphs of a GPU."""
        self._engine, self._prompts, self._sampler, self._seeds = engine, prompts, sampler, seeds
        self._threads = threads
        self.buffers, self.past = Buffers(engine, sampler, batch=len(seeds)), Past(engine.layout)
        self.number, self.position = 0, Position()
        self.change: Change | None = None
        pool = pool or graph_pool(engine.device)
        self._descend = captured(self._steps, engine.device, pool)
        self._pass = captured(self._clean_pass, engine.device, pool)

    @property
    def launches(self) -> int | None:
        """The host's so far: replays of graphs and uploads of their data; None where no graph is replayed."""
        replays = replays_of([self._descend, self._pass])
        return None if replays is None else replays + self.buffers.uploads

    @torch.inference_mode()
    def denoise(self) -> Tensor:
        """The clean latents [B, z, F, h, w] of the next chunk."""
        with using(self._threads):
            self._turn_to(self._prompts.at(self.number))
            self.buffers.draw(self._seeds, self.number)
            self.buffers.aim(self.position)
            self._descend()
        return self.buffers.latents.clone()

    @torch.inference_mode()
    def commit(self) -> None:
        """Leave the chunk just denoised in the cache."""
        with using(self._threads):
            self._keep()
        self.past.add(self.number, self.buffers.latents.clone())
        self.number, self.position = self.number + 1, self.position.next()

    def _keep(self) -> None:
        if self.buffers.keeps:
            self._pass()

    @torch.inference_mode()
    def _steps(self) -> None:
        latents = self.buffers.noise[0]
        for step, timestep in enumerate(self.buffers.timesteps):
            velocity = self._engine.step(latents, timestep, *self.buffers.context)[0]
            latents = self._sampler.advance(latents, velocity, step, self.buffers.fresh(step))
        self.buffers.latents.copy_(latents)

    @torch.inference_mode()
    def _clean_pass(self) -> None:
        latents, clean = self.buffers.latents, self.buffers.clean
        self.buffers.commit(self._engine.entries(latents, clean, *self.buffers.context))

    def _turn_to(self, change: Change) -> None:
        """Take the prompt; where it is new, its policy says what becomes of the cache."""
        if self.change is None or self.change.prompts != change.prompts:
            self.buffers.text_kv.copy_(self._engine.encode_prompt(change.prompts))
        self.change = change
        if change.chunk == self.number > 0:
            self.position, again = self.past.turn(change.policy, self.number, self.position)
            for position, latents in again:
                self.buffers.aim(position)
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
