"""Runs a Wan transformer layer by layer and records what goes into and comes out of each attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.attention import Window
from vmla.config import ModelConfig
from vmla.rope import Rotary3D
from vmla.scheduler import TIMESTEPS, add_noise, shifted
from vmla.transformer import Block, VideoMLA
from vmla.weights.source import Source
from vmla.weights.uninitialised import Uninitialised

MEND = "its weights are damaged, or too large for float32; copy it again"
"""The error's advice for a source whose weights are finite, and what they compute is not."""


@dataclass(frozen=True)
class CalibrationBatch:
    """Noisy latents, timesteps and text on which a conversion observes the source model."""

    latents: Tensor
    """[clips, z, F, h, w], noisy."""
    timestep: Tensor
    """Timestep of each clip [clips] float32, in 0 .. 1000."""
    text: Tensor
    """[clips, text tokens, text width]."""

    @classmethod
    def noise(cls, config: ModelConfig, *, clips: int, seed: int) -> CalibrationBatch:
        """Pure noise at t = 1000 without text, which needs no data: a denoiser's every first step has it."""
        generator = torch.Generator().manual_seed(seed)
        shape = (clips, config.in_channels, config.chunk, config.sample_height, config.sample_width)
        text = torch.zeros(clips, config.text_tokens, config.text_dim)
        return cls(torch.randn(shape, generator=generator), torch.full((clips,), float(TIMESTEPS)), text)

    @classmethod
    def noised(cls, clean: Tensor, text: Tensor, *, shift: float, seed: int) -> CalibrationBatch:
        """True latents [clips, z, F, h, w] at noise levels spread over the schedule."""
        generator = torch.Generator().manual_seed(seed)
        sigma = shifted((torch.arange(len(clean)) + 0.5) / len(clean), shift)
        noise = torch.randn(clean.shape, generator=generator)
        return cls(add_noise(clean, noise, sigma[:, None, None, None, None]), sigma * TIMESTEPS, text)


@dataclass(frozen=True)
class TracedLayer:
    """One layer of the source, and its attention at work."""

    layer: int
    weights: dict[str, Tensor]
    """All tensors of the block by their names within it, self-attention's among them."""
    inputs: Tensor
    outputs: Tensor
    """[clips, S, D]: of self-attention."""


def layers_of(source: Source, calibration: CalibrationBatch) -> Iterator[TracedLayer]:
    """Each layer in turn; never more than one layer's weights are in memory.

    Attention is among the frames of a clip in both directions, as in a rollout's first chunk.

    Raises:
        UserError: if a layer computes something that is not finite.
    """
    with Uninitialised():
        model = VideoMLA(replace(source.config, num_layers=1)).eval().requires_grad_(False)
    model.load_state_dict(source.outer(), strict=False, assign=True)
    block, width = cast(Block, model.blocks[0]), source.config.entry_width
    conditioning = model.condition_embedder
    frames = calibration.latents.shape[2]
    window = all_frames(model.rope, frames)
    states = [model.embed(x[None]) for x in calibration.latents]
    modulations = [conditioning(t.expand(1, frames))[1] for t in calibration.timestep]
    texts = [conditioning.text_embedder(text[None]) for text in calibration.text]
    for layer in range(source.config.num_layers):
        weights = source.part(f"blocks.{layer}.")
        block.load_state_dict(weights, assign=True)
        seen: list[tuple[Tensor, Tensor]] = []
        hook = block.attn1.register_forward_hook(lambda _, args, out, to=seen: to.append((args[0], out[0])))
        for clip, (x, modulation, text) in enumerate(zip(states, modulations, texts, strict=True)):
            empty = x.new_empty(1, 0, width)
            states[clip] = block(x, modulation, block.attn2.keys_values(text), empty, window, False)[0]
        hook.remove()
        inputs, outputs = (torch.cat(parts) for parts in zip(*seen, strict=True))
        if not (torch.isfinite(inputs).all() and torch.isfinite(outputs).all()):
            raise UserError(f"{source.path}: what layer {layer + 1} computes is not finite; {MEND}")
        yield TracedLayer(layer, weights, inputs, outputs)


def all_frames(rope: Rotary3D, frames: int) -> Window:
    """The window of `frames` latent frames and nothing before them."""
    cos, sin = rope(torch.arange(frames))
    return Window(torch.ones(len(cos), dtype=torch.bool), cos, sin)
