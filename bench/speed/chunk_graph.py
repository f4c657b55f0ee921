"""A whole chunk as one function of static buffers: steps, clean pass, commit; on a GPU, one graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness.subject import filling
from vmla.cache import CacheLayout
from vmla.scheduler import Sampler
from vmla.transformer import VideoMLA

WARM_UP = 3


class StaticChunk:
    """One chunk of a full window, over and over: no allocation that a graph could not hold, no host read."""

    def __init__(self, model: VideoMLA, sampler: Sampler, *, batch: int = 1) -> None:
        weight = model.patch_embedding.weight
        config, device, self.dtype = model.config, weight.device, weight.dtype
        layout, number = CacheLayout.of(config), filling(config) + 1
        self.model, self.sampler = model, sampler

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, device=device).to(dtype)

        picture = (batch, config.in_channels, config.chunk, config.sample_height, config.sample_width)
        self.noise = [normal(*picture) for _ in range(sampler.steps)]
        steps = sampler.timesteps().tolist()
        self.times = [torch.full((batch, config.chunk), t, device=device) for t in steps]
        self.clean = torch.zeros(batch, config.chunk, device=device)
        text = (config.num_layers, 2, batch, config.text_tokens, config.inner_dim)
        self.text_kv = normal(*text, dtype=self.dtype)
        self.cache = normal(*layout.shape(batch), dtype=self.dtype)
        self.window = layout.slot_index(number).to(device), layout.chunk_index(number).to(device)
        self.source, self.target = (index.to(device) for index in layout.token_indices(number))

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """The chunk's clean latents [B, z, F, h, w] float32; its entries are committed to the cache."""
        latents = self.noise[0]
        for step, timestep in enumerate(self.times):
            velocity, _ = self._pass(latents, timestep)
            fresh = self.noise[step + 1] if self.sampler.needs_noise(step) else None
            latents = self.sampler.advance(latents, velocity, step, fresh)
        _, entries = self._pass(latents, self.clean)
        self.cache.index_copy_(2, self.target, entries.index_select(2, self.source))
        return latents

    def _pass(self, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        velocity, entries = self.model(
            latents.to(self.dtype), timestep, self.text_kv, self.cache, *self.window, full=True
        )
        return velocity, entries


def captured(chunk: StaticChunk, device: torch.device) -> Callable[[], Tensor]:
    """The chunk as a CUDA graph whose replay gives the same latents; without a GPU, the chunk itself."""
    if device.type != "cuda":
        return chunk
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            chunk()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latents = chunk()

    def replay() -> Tensor:
        graph.replay()
        return latents

    return replay
