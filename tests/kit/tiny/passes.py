"""Random inputs of one pass of the denoiser, at any place of a rollout."""

import torch
from kit.tiny.models import draw

from vmla.cache import CacheSpec


def window_at(spec, number):
    """`slot_index` and `chunk_index` of chunk `number`."""
    start = spec.chunks.start(number)
    return spec.slot_index(start), spec.chunk_index(start, spec.chunks.length(number))


def pass_inputs(config, number, *, batch=1, seed=0, timestep=437.0, empty=float("nan"), frame=None):
    """What `VideoMLA.forward` takes in chunk `number`: all random, `empty` in every empty slot.

    `frame` is the latent frame that the chunk begins at, where it is another than the chunk's own.
    """
    spec = CacheSpec.of(config)
    slots, own = window_at(spec, number)
    if frame is not None:
        slots, own = spec.slot_index(frame), spec.chunk_index(frame, spec.chunks.length(number))
    frames = len(own)
    vacant = (slots < 0).repeat_interleave(spec.tokens_per_frame)[:, None]
    shapes = {
        "latents": (batch, config.in_channels, frames, config.sample_height, config.sample_width),
        "text_kv": (config.num_layers, 2, batch, config.text_tokens, config.inner_dim),
        "cache": spec.shape(batch),
    }
    drawn = {name: draw(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())}
    return {
        "latents": drawn["latents"],
        "timestep": torch.linspace(1, timestep, batch * frames).reshape(batch, frames),
        "text_kv": drawn["text_kv"],
        "cache": drawn["cache"].masked_fill(vacant, empty),
        "slot_index": slots,
        "chunk_index": own,
    }
