"""The rollout: how VideoMLA makes a video of any length, one chunk after the other.

For each chunk: noise that depends only on (seed, chunk, step), a few denoising steps that attend to
the window in the cache, one clean pass at t = 0 whose entries are committed to the cache, and the
chunk's frames handed on. The cache and every tensor keep their size for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from runtime.decoding import Decoder
from runtime.engine import Engine
from runtime.prompts import PromptSource
from runtime.text_cache import TextCache
from vmla.sampler import Sampler, keyed_noise


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a batch of videos."""

    number: int
    frames: Tensor
    """[B, frames, 3, H, W] in [0, 1]."""
    denoise_seconds: float
    decode_seconds: float


def rollout(
    engine: Engine,
    decoder: Decoder,
    prompts: PromptSource,
    sampler: Sampler,
    *,
    seeds: Sequence[int],
    chunks: int,
) -> Iterator[Chunk]:
    """Make `chunks` chunks of one video for each seed, and yield each as soon as it is decoded."""
    layout, config, device = engine.layout, engine.config, engine.device
    text = TextCache(engine)
    batch = len(seeds)
    cache = layout.allocate(batch, dtype=engine.dtype, device=device)
    shape = (config.latent_channels, layout.chunk, config.height, config.image_width)
    timesteps = [torch.full((batch, layout.chunk), t, device=device) for t in sampler.timesteps().tolist()]
    clean = torch.zeros(batch, layout.chunk, device=device)

    def noise(chunk: int, step: int) -> Tensor:
        drawn = [keyed_noise(shape, seed=seed, chunk=chunk, step=step) for seed in seeds]
        return torch.stack(drawn).to(device)

    for number in range(chunks):
        began = perf_counter()
        text_kv = text.of(prompts.at(number))
        window = layout.slot_index(number).to(device), layout.chunk_index(number).to(device)
        latents = noise(number, 0)
        for step, timestep in enumerate(timesteps):
            velocity, _ = engine.step(latents, timestep, text_kv, cache, *window)
            fresh = noise(number, step + 1) if sampler.needs_noise(step) else None
            latents = sampler.advance(latents, velocity, step, fresh)
        _, entries = engine.step(latents, clean, text_kv, cache, *window)
        layout.commit_(cache, entries, number)
        denoised = perf_counter()
        frames = decoder.decode(latents)
        yield Chunk(number, frames, denoised - began, perf_counter() - denoised)
