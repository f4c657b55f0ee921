"""A cached rollout equals one full masked forward, in both layouts, under every kind of window."""

import itertools

import pytest
import torch
from kit.equations import Equations, window_of
from kit.measure import assert_close
from kit.models import draw, tiny_config, tiny_model

from vmla.cache import CacheLayout

pytestmark = pytest.mark.cpu

LAYOUTS = ["mla", "mha"]
WINDOWS = {
    "one sink": {"sink": 1, "history": 3, "chunk": 2},
    "ring shorter than the chunk": {"sink": 1, "history": 2, "chunk": 3},
    "ring of whole chunks": {"sink": 1, "history": 6, "chunk": 3},
    "no sink": {"sink": 0, "history": 4, "chunk": 3},
    "sink longer than the chunk": {"sink": 3, "history": 3, "chunk": 2},
    "no history": {"sink": 2, "history": 0, "chunk": 2},
    "one frame at a time": {"sink": 1, "history": 2, "chunk": 1},
}
CHUNKS, BATCH = 5, 2


def draw_inputs(config, chunks=CHUNKS, seed=0):
    """Clean and noisy latents, timesteps of the noisy ones, text embeddings."""
    frames = chunks * config.chunk
    shape = (BATCH, config.latent_channels, frames, config.height, config.image_width)
    timestep = 1000 * torch.rand(BATCH, frames, generator=torch.Generator().manual_seed(seed))
    text = draw(BATCH, config.text_tokens, config.text_width, seed=seed + 3)
    return draw(*shape, seed=seed + 1), draw(*shape, seed=seed + 2), timestep, text


def roll(model, clean, noisy, timestep, text, **how):
    """Velocities of both passes of each chunk, joined along time, and all entries [L, B, frames, P, E]."""
    layout, text_kv = CacheLayout.of(model.config), model.encode_text(text)
    cache = layout.allocate(BATCH, dtype=clean.dtype)
    velocities, left = [[], []], []
    size = layout.chunk
    for number in range(clean.shape[2] // size):
        part = slice(number * size, (number + 1) * size)
        window = layout.slot_index(number), layout.chunk_index(number)
        still = torch.zeros(BATCH, size)
        quiet, entries = model(clean[:, :, part], still, text_kv, cache, *window, **how)
        loud, _ = model(noisy[:, :, part], timestep[:, part], text_kv, cache, *window, **how)
        velocities[0].append(quiet)
        velocities[1].append(loud)
        left.append(entries.unflatten(2, (size, -1)))
        layout.commit_(cache, entries, number)
    return torch.cat([*velocities[0], *velocities[1]], dim=2), torch.cat(left, dim=2)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cached_rollout_equals_one_full_masked_forward(layout, window):
    model = tiny_model(layout=layout, **window)
    inputs = draw_inputs(model.config)
    velocity, entries = roll(model, *inputs)
    expected, left = Equations(model).run(*inputs)
    assert expected.std() > 0.1
    assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    assert_close(entries, left, rtol=1e-4, atol=1e-4)
