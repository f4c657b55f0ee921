"""Random inputs of one pass of the denoiser, at any place of a rollout."""

import torch
from kit.models import draw

from vmla.cache import CacheLayout


def window_at(layout, number):
    """`slot_index` and `chunk_index` of chunk `number`."""
    start = layout.chunks.start(number)
    return layout.slot_index(start), layout.chunk_index(start, layout.chunks.length(number))


def pass_inputs(config, number, *, batch=1, seed=0, timestep=437.0, empty=float("nan")):
    """What `VideoMLA.forward` takes in chunk `number`: all random, `empty` in every empty slot."""
    layout = CacheLayout.of(config)
    slots, own = window_at(layout, number)
    frames = len(own)
    vacant = (slots < 0).repeat_interleave(layout.tokens_per_frame)[:, None]
    shapes = {
        "latents": (batch, config.in_channels, frames, config.sample_height, config.sample_width),
        "text_kv": (config.num_layers, 2, batch, config.text_tokens, config.inner_dim),
        "cache": layout.shape(batch),
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
