"""Times the denoiser's step on this machine, to choose between two ways of computing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from runtime.engines.layers.packed_linear import packable, packed
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.fused_attention import fused
from vmla.scheduler import TIMESTEPS
from vmla.transformer import StepInputs, VideoMLA

BLOCKS = 2
"""Transformer blocks of a model whose types are compared: enough that they outweigh what surrounds them."""
SECONDS = 1.0
"""Seconds that steps are timed for, at least one round after the first, which is not counted."""

Step = Callable[[], object]


def fewest_seconds(steps: Mapping[str, Step], *, budget: float = SECONDS) -> dict[str, float]:
    """The fewest seconds that each of `steps` took, in rounds of all of them forwards and backwards.

    The fewest count, because other work can only make a step slower; the turns give slow changes of the
    machine's clock to all alike. A first call of each lays out memory and is not counted. Where PyTorch has
    one thread, its own time counts and not that of the wall: beside other work a long step is interrupted
    more often than a short one, and an engine once seemed 4 times as fast where it was 1.65 times.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    fewest = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    began = time.perf_counter()
    while True:
        for name in (*steps, *reversed(list(steps))):
            start = clock()
            steps[name]()
            fewest[name] = min(fewest[name], clock() - start)
        if time.perf_counter() - began >= budget:
            return fewest


def full_window(config: ModelConfig, dtype: torch.dtype) -> StepInputs:
    """The inputs of a step of one video in a full window, on a CPU: noise, the same at each call.

    Latents [1, C, F, h, w] and timestep [1, F] are float32, text [L, 2, 1, tokens, D] and cache [L, 1, T, E]
    are in `dtype`.
    """
    spec, drawn = CacheSpec.of(config), torch.Generator().manual_seed(0)
    frame = spec.chunks.start(2 + spec.slots // spec.chunk)  # the first of a chunk that finds no slot empty

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn)

    return StepInputs(
        draw(1, config.in_channels, config.chunk, config.sample_height, config.sample_width),
        torch.full((1, config.chunk), TIMESTEPS / 2),
        draw(config.num_layers, 2, 1, config.text_tokens, config.inner_dim).to(dtype),
        draw(*spec.shape(1)).to(dtype),
        spec.slot_index(frame),
        spec.chunk_index(frame, spec.chunk),
    )


@torch.inference_mode()
def seconds_by_type(config: ModelConfig, types: tuple[torch.dtype, ...]) -> dict[torch.dtype, float]:
    """Seconds of a step of `BLOCKS` blocks of such a model on this CPU in each of `types`; reads no weights.

    Its random weights are laid out as `runtime.engines.base.EagerEngine` lays out a model's.
    """
    few = replace(config, num_layers=min(BLOCKS, config.num_layers))
    names = {str(dtype): dtype for dtype in types}
    fewest = fewest_seconds({name: _step(few, dtype) for name, dtype in names.items()})
    return {names[name]: seconds for name, seconds in fewest.items()}


def _step(config: ModelConfig, dtype: torch.dtype) -> Step:
    with torch.random.fork_rng(devices=[]):
        drawn = VideoMLA(config).eval().to(dtype)
    drawn.rope.float()
    model = fused(drawn)
    if packable(torch.device("cpu"), dtype):
        model = packed(model, config.chunk * config.tokens_per_frame)
    inputs = full_window(config, dtype)
    inputs = inputs._replace(latents=inputs.latents.to(dtype))
    return lambda: model(*inputs, full=True)
