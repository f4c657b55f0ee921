"""The mha layout with Wan's weights is Wan's transformer, as diffusers has it."""

import pytest
import torch
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.references.wan import from_diffusers, wan_transformer
from kit.tiny.models import draw, randomise, tiny_config
from kit.tiny.passes import window_at

from vmla.cache import CacheSpec
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

FRAMES, BATCH = 4, 2


def wan_and_ours(**changes):
    """A random Wan transformer, and ours with its weights; one chunk is the whole video."""
    config = tiny_config(layout="mha", chunk=FRAMES, **changes)
    wan = randomise(wan_transformer(config))
    ours = VideoMLA(config).requires_grad_(False)
    ours.load_state_dict(from_diffusers(wan.state_dict()))
    return wan, ours


def run_bidirectional(model, latents, timestep, text):
    """Our step over all frames at once, with nothing in the cache."""
    spec = CacheSpec.of(model.config)
    cache = spec.allocate(BATCH, dtype=torch.float32)
    window = window_at(spec, 0)
    return model(latents, timestep, model.encode_text(text), cache, *window)[0]


def draw_inputs(config):
    latents = draw(BATCH, config.in_channels, FRAMES, config.sample_height, config.sample_width, seed=1)
    return latents, draw(BATCH, config.text_tokens, config.text_dim, seed=2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_attention_heads": 3, "attention_head_dim": 28, "num_layers": 3}],
    ids=["even", "odd"],
)
def test_mha_equals_diffusers(changes):
    wan, ours = wan_and_ours(**changes)
    latents, text = draw_inputs(ours.config)
    timestep = torch.tensor([731.5, 88.25])
    expected = wan(latents, timestep, text, return_dict=False)[0]
    velocity = run_bidirectional(ours, latents, timestep[:, None].expand(-1, FRAMES), text)
    assert expected.std() > 0.1
    assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


def test_mha_equals_diffusers_with_a_timestep_for_each_frame():
    """Through the timesteps for each token that diffusers has for Wan 2.2."""
    wan, ours = wan_and_ours()
    latents, text = draw_inputs(ours.config)
    timestep = torch.tensor([[0.0, 250.0, 625.0, 1000.0], [937.5, 12.5, 0.0, 833.25]])
    of_tokens = timestep.repeat_interleave(ours.config.tokens_per_frame, dim=1)
    expected = wan(latents, of_tokens, text, return_dict=False)[0]
    assert_close(run_bidirectional(ours, latents, timestep, text), expected, rtol=1e-5, atol=1e-5)


def test_the_equations_equal_diffusers():
    """The reference of `test_transformer` stands on Wan itself."""
    wan, ours = wan_and_ours()
    latents, text = draw_inputs(ours.config)
    timestep = torch.tensor([731.5, 88.25])
    expected = wan(latents, timestep, text, return_dict=False)[0]
    both, _ = Equations(ours).run(latents, latents, timestep[:, None].expand(-1, FRAMES), text)
    # Float64 against float32: angles of up to 1,000 radians alone differ by 6e-5.
    assert_close(both[:, :, FRAMES:], expected, rtol=1e-4, atol=1e-4)
