"""The passes over a chunk's buffers: the denoising steps, and the clean pass whose entries are cached."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.engines.base import Engine
from runtime.rollout.buffers import Buffers
from vmla.scheduler import guided
from vmla.transformer import StepInputs


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
