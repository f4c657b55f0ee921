"""The tensors of a rollout's chunks: allocated once, then only written to.

Whatever changes from chunk to chunk (noise, positions, validity, where a commit goes, the text) is
data in them, so that every chunk is the same computation and one CUDA graph can stand for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from runtime.engines.base import Engine
from vmla.config import ModelConfig
from vmla.scheduler import Sampler, keyed_noise


def picture_shape(config: ModelConfig, frames: int) -> tuple[int, int, int, int]:
    """A chunk of `frames` latent frames of one video: [z, F, h, w]."""
    return config.in_channels, frames, config.sample_height, config.sample_width


def noise_draws(sampler: Sampler) -> int:
    """Tensors of noise that a chunk needs at most: see `_draws`."""
    return max(map(_draws, sampler.of_chunks))


def _draws(sampler: Sampler) -> int:
    """One tensor of noise to start from, and one for each step that re-noises."""
    return 1 + sum(sampler.needs_noise(step) for step in range(sampler.steps))


class BuffersByLength(dict[int, "Buffers"]):
    """The buffers of one video by the latent frames of a chunk."""


def allocate(engine: Engine, sampler: Sampler, *, batch: int) -> BuffersByLength:
    """Buffers for `batch` videos by the latent frames of a chunk.

    Shapes are static, so a first chunk that is shorter than the others has buffers of its own, but for the
    cache and the text.
    """
    chunks = engine.cache_spec.chunks
    usual = Buffers(engine, sampler, batch=batch, frames=chunks.following)
    if chunks.first == chunks.following:
        return BuffersByLength({chunks.following: usual})
    first = Buffers(engine, sampler, batch=batch, frames=chunks.first, beside=usual)
    return BuffersByLength({chunks.following: usual, chunks.first: first})


class Buffers:
    """Inputs and outputs of the passes over a chunk of `frames` latent frames of `batch` videos."""

    def __init__(
        self, engine: Engine, sampler: Sampler, *, batch: int, frames: int, beside: Buffers | None = None
    ) -> None:
        """Allocate them, but for cache and text those of `beside`, which is for chunks of another length."""
        config, spec, device = engine.config, engine.cache_spec, engine.device
        self.cache_spec, self.frames, self._samplers = spec, frames, sampler
        self.sampler = sampler.of_chunk(opens=False)
        """The sampler of the chunk whose noise is drawn."""
        self._picture = picture_shape(config, frames)
        self.noise = torch.zeros(noise_draws(sampler), batch, *self._picture, device=device)
        self.latents = torch.zeros(batch, *self._picture, device=device)
        if beside is None:
            self.cache = spec.allocate(batch, dtype=engine.cache_dtype, device=device)
            text = (config.num_layers, 2, batch, config.text_tokens, config.inner_dim)
            self.text_kv = torch.zeros(text, dtype=engine.dtype, device=device)
            self.negative_text_kv = self.text_kv.clone() if sampler.guided else self.text_kv
        else:
            self.cache, self.text_kv = beside.cache, beside.text_kv
            self.negative_text_kv = beside.negative_text_kv
        self.slot_index = torch.full((spec.slots,), -1, dtype=torch.int32, device=device)
        self.chunk_index = torch.zeros(frames, dtype=torch.int32, device=device)
        rows = frames * spec.tokens_per_frame if spec.slots else 0
        self.source = torch.zeros(rows, dtype=torch.int64, device=device)
        self.target = torch.zeros(rows, dtype=torch.int64, device=device)
        # A tensor for each step, never written again: `ConditioningTable` recognises them by identity.
        self._timesteps = {
            one: [torch.full((batch, frames), t, device=device) for t in one.timesteps().tolist()]
            for one in sampler.of_chunks
        }
        self.clean = torch.zeros(batch, frames, device=device)
        self.uploads = 0
        """Copies from main memory to the device so far."""
        self.commits = False
        """Whether the chunk is committed: without a history none is, once the sink is full."""
        self.held = 0
        """Slots of the window that hold a frame: the first ones."""

    @property
    def window(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inputs of every pass besides latents and timestep, in the order of `StepInputs`."""
        return self.text_kv, self.cache, self.slot_index, self.chunk_index

    @property
    def timesteps(self) -> list[Tensor]:
        """The timestep of each step of the chunk: [B, F] each."""
        return self._timesteps[self.sampler]

    def draw_noise(self, seeds: Sequence[int], chunk: int, *, opens: bool) -> None:
        """Fill in the noise of chunk number `chunk` of the videos with these seeds.

        `opens` if the chunk is the first of its prompt, which may have a sampler of its own.
        """
        self.sampler = self._samplers.of_chunk(opens=opens)
        # All noise of a chunk in one upload. Draw 0 is the start; draw i + 1 is what step i adds.
        drawn = [
            keyed_noise(self._picture, seed=seed, chunk=chunk, step=step)
            for step in range(_draws(self.sampler))
            for seed in seeds
        ]
        noise = self.noise[: _draws(self.sampler)]
        self._put(noise, torch.stack(drawn).view(noise.shape))

    def renoise(self, step: int) -> Tensor | None:
        """The noise that step number `step` adds at its end; None if the sampler adds none."""
        return self.noise[step + 1] if self.sampler.needs_noise(step) else None

    def set_window(self, frame: int) -> None:
        """Set the window of the chunk that begins at latent frame `frame`, and the slots of its commit."""
        source, target = self.cache_spec.token_indices(frame, self.frames, padded=True)
        slots = self.cache_spec.slot_index(frame)
        self.held = int((slots >= 0).sum())  # of a host tensor: reads nothing from the device
        self._put(self.slot_index, slots)
        self._put(self.chunk_index, self.cache_spec.chunk_index(frame, self.frames))
        self.commits = len(source) > 0
        if self.commits:
            self._put(self.source, source)
            self._put(self.target, target)

    @contextmanager
    def restored_afterwards(self) -> Iterator[None]:
        """Restore the latents and the cache afterwards, whatever passes inside have written into them."""
        # Only the rows of this commit: a copy of the whole cache would double its memory.
        rows = self.cache.index_select(2, self.target)
        latents = self.latents.clone()
        yield
        self.latents.copy_(latents)
        self.cache.index_copy_(2, self.target, rows)

    def take(self, other: Buffers) -> None:
        """Copy all that passes read or continue from `other`, which is for chunks of the same length."""
        for ours, theirs in zip(self._tensors(), other._tensors(), strict=True):
            ours.copy_(theirs)
        self.held, self.commits, self.uploads = other.held, other.commits, other.uploads
        self.sampler = other.sampler

    def _tensors(self) -> list[Tensor]:
        """All that differs between videos, or between chunks."""
        text = [self.text_kv, *([self.negative_text_kv] if self._samplers.guided else [])]
        indices = [self.slot_index, self.chunk_index, self.source, self.target]
        return [self.noise, self.latents, self.cache, *text, *indices]

    def _put(self, buffer: Tensor, value: Tensor) -> None:
        """Copy from main memory; to a GPU through pinned memory, which PyTorch holds until it is read."""
        on_gpu = buffer.device.type == "cuda"
        buffer.copy_(value.pin_memory() if on_gpu else value, non_blocking=on_gpu)
        self.uploads += 1

    def commit(self, entries: Tensor) -> None:
        """Write `entries` [L, B, S, E] of the chunk whose window is set into the cache."""
        self.cache.index_copy_(2, self.target, entries.index_select(2, self.source))
