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

from runtime.device.threads import using
from runtime.engines.base import Engine
from runtime.prompts.sources import PromptChange, PromptSource
from runtime.rollout.buffers import Buffers, allocate
from runtime.rollout.decoding import Decoder
from runtime.rollout.graphs import ChunkGraphs, Kind
from runtime.rollout.recache import LatentHistory
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


class ChunkPasses:
    """The passes of an engine over a chunk, as the sampler of its buffers orders them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @torch.inference_mode()
    def denoise(self, buffers: Buffers) -> None:
        """Go from noise to clean latents, level by level."""
        latents = buffers.noise[0]
        for step, timestep in enumerate(buffers.timesteps):
            velocity = self._velocity(StepInputs(latents, timestep, *buffers.window), buffers)
            latents = buffers.sampler.step(latents, velocity, step, buffers.renoise(step))
        buffers.latents.copy_(latents)

    @torch.inference_mode()
    def update_cache(self, buffers: Buffers) -> None:
        """Run the clean pass at t = 0 and write its entries to the cache."""
        inputs = StepInputs(buffers.latents, buffers.clean, *buffers.window)
        buffers.commit(self.engine.entries(inputs, held=buffers.held))

    def _velocity(self, inputs: StepInputs, buffers: Buffers) -> Tensor:
        """The velocity of a step; with guidance, from a second pass under the negative prompt too."""
        weight = buffers.sampler.guidance_scale
        velocity = self.engine.step(inputs, held=buffers.held)[0]
        if weight == 1:
            return velocity
        against = inputs._replace(text_kv=buffers.negative_text_kv)
        negative = self.engine.step(against, held=buffers.held)[0]
        return guided(velocity.float(), negative.float(), weight)


class Rollout:
    """One batch of videos in the making: `denoise` and `update_cache` in turn make chunk after chunk."""

    def __init__(
        self, engine: Engine, prompts: PromptSource, sampler: Sampler,
        *, seeds: Sequence[int], threads: int | None = None, graphs: ChunkGraphs | bool = True,
        start: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        """Allocate the buffers of one video for each of `seeds`.

        A CPU computes with `threads` threads, or PyTorch's own number if None. On a GPU chunks replay
        `graphs`, which several rollouts share, or a set of its own; if False, every operation is launched by
        itself. `start` has the clean latents [B, z, F, h, w] of the first chunks, taken as they are.
        """
        self._engine, self._prompts, self._sampler, self._seeds = engine, prompts, sampler, seeds
        self._threads, self._start = threads, start
        self._chunks, self.past = engine.cache_spec.chunks, LatentHistory(engine.cache_spec)
        self._buffers = allocate(engine, sampler, batch=len(seeds))
        self._frames = self._chunks.first
        """Latent frames of the chunk under way."""
        if sampler.guided:
            with using(threads):  # the number of threads may change the last bits
                negative = engine.encode_prompt([sampler.negative_prompt] * len(seeds))
            self.buffers.negative_text_kv.copy_(negative)
        self.number = 0
        """The chunk that is next, or under way."""
        self.frame = 0
        """Its first latent frame, counted from where the history was dropped last (`vmla.cache`)."""
        self.change: PromptChange | None = None
        self._passes = ChunkPasses(engine)
        self._graphs = ChunkGraphs(self._passes, sampler) if graphs is True else graphs or None
        self._replays = 0

    @property
    def buffers(self) -> Buffers:
        """The buffers of the chunk under way, whose length may differ from the others'."""
        return self._buffers[self._frames]

    @torch.inference_mode()
    def denoise(self) -> Tensor:
        """The clean latents [B, z, F, h, w] of the next chunk."""
        with using(self._threads):
            self._change_prompt(self._prompts.at(self.number))
            self._set_window(self.frame, self._chunks.length(self.number))
            if self.number < len(self._start):
                self.buffers.latents.copy_(self._start[self.number])
            else:
                self.buffers.draw_noise(self._seeds, self.number, opens=self._opens())
                self._denoise()
        # A copy, because the decoder reads it on another thread while the next chunk overwrites the buffer.
        return self.buffers.latents.clone()

    @torch.inference_mode()
    def update_cache(self) -> None:
        """Commit the chunk just denoised to the cache."""
        with using(self._threads):
            self._update_cache()
        self.past.add(self.number, self.buffers.latents.clone())
        self.number, self.frame = self.number + 1, self.frame + self.buffers.frames

    def _opens(self) -> bool:
        """Whether the chunk under way is the first of its prompt, or has nothing before it to look at."""
        return self.frame == 0 or (self.change is not None and self.change.chunk == self.number)

    def _change_prompt(self, change: PromptChange) -> None:
        """Encode the prompt if it has changed, and apply its policy to the cache."""
        if self.change is None or self.change.prompts != change.prompts:
            self.buffers.text_kv.copy_(self._engine.encode_prompt(change.prompts))
        self.change = change
        if change.chunk == self.number > 0:
            self.frame, replayed = self.past.change_prompt(change.policy, self.number, self.frame)
            # Each chunk of the window is committed again, by a clean pass under the new prompt.
            for frame, latents in replayed:
                self._set_window(frame, latents.shape[2])
                self.buffers.latents.copy_(latents)
                self._update_cache()

    def _set_window(self, frame: int, frames: int) -> None:
        """Select the buffers for `frames` latent frames and set the window that begins at `frame`."""
        self._frames = frames
        self.buffers.set_window(frame)

    def _denoise(self) -> None:
        if self._graphs is None:
            self._passes.denoise(self.buffers)
        else:
            self._replays += self._graphs.denoise(self._buffers, self._kind())

    def _update_cache(self) -> None:
        if not self.buffers.commits:
            return
        if self._graphs is None:
            self._passes.update_cache(self.buffers)
        else:
            self._replays += self._graphs.update_cache(self._buffers, self._kind())

    def _kind(self) -> Kind:
        return self._frames, self._engine.computation(self.buffers.held), self.buffers.sampler

    @property
    def launches(self) -> int | None:
        """Launches by the host so far: graph replays and uploads of their data; None without graphs."""
        if not self._replays:
            return None
        return self._replays + sum(one.uploads for one in self._buffers.values())


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
