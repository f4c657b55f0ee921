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
from runtime.prompts.sources import PromptChange, PromptSource
from runtime.rollout.buffers import allocate
from runtime.rollout.decoding import Decoder
from runtime.rollout.recache import Past
from vmla.scheduler import Sampler, guided
from vmla.transformer import StepInputs


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a batch of videos."""

    number: int
    frames: Tensor
    """[B, frames, 3, H, W] in [0, 1]."""
    denoise_seconds: float
    decode_seconds: float


class Computations(NamedTuple):
    """What a chunk of one kind of window computes: on a GPU, one CUDA graph each."""

    denoise: Callable[[], None]
    update_cache: Callable[[], None]


class Rollout:
    """One batch of videos in the making: `denoise` and `update_cache` in turn make chunk after chunk."""

    def __init__(
        self, engine: Engine, prompts: PromptSource, sampler: Sampler,
        *, seeds: Sequence[int], threads: int | None = None, pool: Pool | None = None, graphs: bool = True,
        start: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        """Allocate the buffers of one video for each of `seeds`.

        A CPU computes with `threads` threads, or PyTorch's own number if None. On a GPU intermediate results
        of graphs lie in `pool`; without `graphs`, every operation is launched by itself. `start` has the
        clean latents [B, z, F, h, w] of the first chunks, which are taken as they are.
        """
        self._engine, self._prompts, self._sampler, self._seeds = engine, prompts, sampler, seeds
        self._threads, self._start = threads, start
        self._chunks, self.past = engine.cache_spec.chunks, Past(engine.cache_spec)
        self._buffers = allocate(engine, sampler, batch=len(seeds))
        self.buffers = self._buffers[self._chunks.first]
        """The buffers of the chunk under way."""
        if sampler.guided:
            negative = engine.encode_prompt([sampler.negative_prompt] * len(seeds))
            self.buffers.negative_text_kv.copy_(negative)
        self.number = 0
        """The chunk that is next, or under way."""
        self.frame = 0
        """Its first latent frame, counted from where the history was dropped last (`vmla.cache`)."""
        self.change: PromptChange | None = None
        self._pool = pool or graph_pool(engine.device)
        self._with_graphs = graphs
        self._computations: dict[tuple[int, bool], Computations] = {}
        self._launched = Computations(self._denoising_steps, self._clean_pass)
        self._begun = False
        """Whether a chunk has been made. The first runs launch by launch: its frames wait for no capture."""

    @torch.inference_mode()
    def denoise(self) -> Tensor:
        """The clean latents [B, z, F, h, w] of the next chunk."""
        with using(self._threads):
            self._change_prompt(self._prompts.at(self.number))
            self._set_window(self.frame, self._chunks.length(self.number))
            if self.number < len(self._start):
                self.buffers.latents.copy_(self._start[self.number])
            else:
                self.buffers.draw_noise(self._seeds, self.number)
                self._captured().denoise()
        return self.buffers.latents.clone()

    @torch.inference_mode()
    def update_cache(self) -> None:
        """Commit the chunk just denoised to the cache."""
        with using(self._threads):
            self._update_cache()
        self.past.add(self.number, self.buffers.latents.clone())
        self.number, self.frame = self.number + 1, self.frame + self.buffers.frames
        self._begun = True

    @torch.inference_mode()
    def _denoising_steps(self) -> None:
        """Go from noise to clean latents, level by level."""
        latents = self.buffers.noise[0]
        for step, timestep in enumerate(self.buffers.timesteps):
            velocity = self._velocity(StepInputs(latents, timestep, *self.buffers.window))
            latents = self._sampler.step(latents, velocity, step, self.buffers.renoise(step))
        self.buffers.latents.copy_(latents)

    def _velocity(self, inputs: StepInputs) -> Tensor:
        """Of a step; with guidance, of a second pass over the same window too, told the negative prompt."""
        full = self.buffers.full
        velocity = self._engine.step(inputs, full=full)[0]
        if not self._sampler.guided:
            return velocity
        negative = self._engine.step(inputs._replace(text_kv=self.buffers.negative_text_kv), full=full)[0]
        return guided(velocity.float(), negative.float(), self._sampler.guidance_scale)

    @torch.inference_mode()
    def _clean_pass(self) -> None:
        """The entries of the clean chunk, at t = 0, go into the cache."""
        inputs = StepInputs(self.buffers.latents, self.buffers.clean, *self.buffers.window)
        self.buffers.commit(self._engine.entries(inputs, full=self.buffers.full))

    def _change_prompt(self, change: PromptChange) -> None:
        """Encode the prompt if it has changed, and apply its policy to the cache."""
        if self.change is None or self.change.prompts != change.prompts:
            self.buffers.text_kv.copy_(self._engine.encode_prompt(change.prompts))
        self.change = change
        if change.chunk == self.number > 0:
            self.frame, replayed = self.past.change_prompt(change.policy, self.number, self.frame)
            for frame, latents in replayed:
                self._set_window(frame, latents.shape[2])
                self.buffers.latents.copy_(latents)
                self._update_cache()

    def _set_window(self, frame: int, frames: int) -> None:
        """Select the buffers for `frames` latent frames and set the window that begins at `frame`."""
        self.buffers = self._buffers[frames]
        self.buffers.set_window(frame)

    def _update_cache(self) -> None:
        if self.buffers.commits:
            self._captured().update_cache()

    def _captured(self) -> Computations:
        """What this kind of window computes. A GPU's graphs are captured after the first chunk, when a window
        first needs them."""
        if not self._begun:
            return self._launched
        kind = self.buffers.frames, self.buffers.full
        if kind not in self._computations:
            with self.buffers.restored_afterwards():
                self._computations[kind] = Computations(
                    self._graph_of(self._denoising_steps), self._graph_of(self._clean_pass)
                )
        return self._computations[kind]

    def _graph_of(self, compute: Callable[[], None]) -> Callable[[], None]:
        return captured(compute, self._engine.device, self._pool) if self._with_graphs else compute

    @property
    def launches(self) -> int | None:
        """The host's so far: replays of graphs and uploads of their data; None where no graph is replayed."""
        replays = replays_of([graph for pair in self._computations.values() for graph in pair])
        return None if replays is None else replays + sum(one.uploads for one in self._buffers.values())


def rollout(
    engine: Engine, decoder: Decoder, prompts: PromptSource, sampler: Sampler,
    *, seeds: Sequence[int], chunks: int, threads: int | None = None,
) -> Iterator[Chunk]:  # fmt: skip
    """Make `chunks` chunks of one video for each seed, and yield each as soon as it is decoded."""
    videos = Rollout(engine, prompts, sampler, seeds=seeds, threads=threads)
    for number in range(chunks):
        began = perf_counter()
        if number:
            videos.update_cache()
        latents = videos.denoise()
        denoised = perf_counter()
        yield Chunk(number, decoder.decode(latents), denoised - began, perf_counter() - denoised)
