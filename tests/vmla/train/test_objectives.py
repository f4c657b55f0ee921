"""The objectives of distillation are their formulas, on the windows and with the steps of a rollout."""

import dataclasses

import pytest
import torch
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.tiny.models import draw, randomise, tiny_config, tiny_model

from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler, guided
from vmla.train.loop.parallel import checkpoint_blocks
from vmla.train.objectives.cached_rollout import CachedRollout, clip_velocity
from vmla.train.objectives.consistency import Consistency, Networks, consistency_loss, teacher_velocity
from vmla.train.objectives.dmd import (
    critic_loss,
    generator_loss,
    guided_beyond,
    matching_gradient,
    score_sigma,
)
from vmla.train.objectives.packed_clip import predicted
from vmla.train.objectives.self_forcing import self_rollout
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

BATCH, STUDENT = 2, Sampler(kind="renoise", steps=3, shift=3.0)


def memory_of(model, text=None, numbers=None):
    text = draw(BATCH, 5, 10, seed=3) if text is None else text
    return CachedRollout(model, CacheSpec.of(model.config), model.encode_text(text), numbers)


def clip(config, chunks, seed=1):
    return draw(
        BATCH, config.in_channels, chunks * config.chunk, config.sample_height, config.sample_width, seed=seed
    )


# Guidance


def test_the_two_conventions_differ_by_one():
    c, u = draw(4, seed=1), draw(4, seed=2)
    assert_close(guided_beyond(c, u, 3.0), guided(c, u, 4.0), rtol=1e-5, atol=1e-6)
    assert_close(guided(c, u, 3.0), u + 3 * (c - u), rtol=1e-6, atol=1e-6)
    assert torch.equal(guided(c, u, 0.0), u)
    assert torch.equal(guided_beyond(c, u, 0.0), c)
    assert_close(guided(c, u, 1.0), c, rtol=1e-6, atol=1e-6)


def test_consistency_guides_by_the_first_convention_and_matching_by_the_second():
    model, text = tiny_model(), [draw(BATCH, 5, 10, seed=s) for s in (3, 4)]
    memories = [memory_of(model, each) for each in text]
    x, sigma = clip(model.config, 1), torch.tensor([0.9, 0.4])
    c, u = (memory.velocity(x, sigma, 0) for memory in memories)
    networks = Networks(memories[0], memories[0], memories[0], memories[1])
    assert_close(teacher_velocity(networks, x, x, sigma, 3.0), u + 3 * (c - u), rtol=1e-5, atol=1e-5)
    # On estimates x0 = x - sigma v, weight 3 of the second is weight 4 of the first on velocities.
    level = sigma[:, None, None, None, None]
    real = guided_beyond(x - level * c, x - level * u, 3.0)
    assert_close(real, x - level * (u + 4 * (c - u)), rtol=1e-4, atol=1e-4)


# Rollouts


@pytest.mark.parametrize("kind", ["renoise", "euler"])
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_self_rollout_is_a_rollout(layout, kind):
    sampler = dataclasses.replace(STUDENT, kind=kind)
    model = tiny_model(layout=layout)
    text, chunks = draw(1, 5, 10), 4

    class Engine:
        config, cache_spec = model.config, CacheSpec.of(model.config)
        device, dtype, cache_dtype = torch.device("cpu"), torch.float32, torch.float32

        def step(self, inputs, held):
            return model(*inputs, full=held == self.cache_spec.slots)

        def entries(self, inputs, held):
            return model.entries(*inputs, full=held == self.cache_spec.slots)

        def computation(self, held):
            return held

        def encode_prompt(self, prompts):
            return model.encode_text(text)

    made = rollout(Engine(), NoDecoder(), FixedPrompts("x"), sampler, seeds=[11], chunks=chunks)
    expected = torch.cat([chunk.frames for chunk in made], dim=1).transpose(1, 2)
    config = model.config
    picture = (config.in_channels, config.sample_height, config.sample_width)
    latents = self_rollout(memory_of(model, text), sampler, picture, chunks=chunks, exit_step=2, seeds=[11])
    assert_close(latents, expected, rtol=1e-5, atol=1e-5)


def test_what_descends_step_by_step_does_not_exit_on_the_way():
    model = tiny_model()
    sampler = dataclasses.replace(STUDENT, kind="euler")
    memory = memory_of(model, draw(1, 5, 10))
    with pytest.raises(ValueError, match="one of its steps 2 to 2"):
        self_rollout(memory, sampler, (3, 4, 6), chunks=1, exit_step=1, seeds=[1])


def rolled(model, step, **how):
    config = model.config
    picture = (config.in_channels, config.sample_height, config.sample_width)
    text_kv = model.encode_text(draw(BATCH, 5, 10, seed=3))
    memory = CachedRollout(step, CacheSpec.of(config), text_kv)
    return self_rollout(memory, STUDENT, picture, seeds=[1, 2], **how)


def test_only_the_exit_step_of_the_learned_chunks_carries_gradients():
    model = tiny_model().requires_grad_(True)
    learns = []

    def step(*inputs):
        learns.append(torch.is_grad_enabled())
        return model(*inputs)

    rolled(model, step, chunks=3, exit_step=1, learned=2)
    # Two steps and a clean pass for each chunk.
    assert learns == [False, False, False, False, True, False, False, True, False]
    latents = rolled(model, model, chunks=3, exit_step=1, learned=1)
    size = model.config.chunk
    frozen, bias = latents[:, :, : 2 * size].sum(), [model.proj_out.bias]
    (gradient,) = torch.autograd.grad(frozen, bias, allow_unused=True)
    assert gradient is None or not gradient.any()


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_checkpointing_changes_no_gradient_once_frames_are_evicted(layout):
    """The blocks of a rollout's first chunks run again after the cache has moved on."""
    gradients = []
    for prepare in (lambda model: model, checkpoint_blocks):
        model = prepare(tiny_model(layout=layout).requires_grad_(True))
        spec = CacheSpec.of(model.config)
        latents = rolled(model, model, chunks=5, exit_step=1)
        assert latents.shape[2] > spec.slots + spec.chunk
        (latents * clip(model.config, 5, seed=9)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, kept in zip(*gradients, strict=True):
        assert_close(kept, plain, rtol=1e-5, atol=1e-5)


# Objectives


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_consistency_loss_is_its_formula(guidance):
    """By one masked forward in float64 for each network, no cache."""
    config, chunks = tiny_config(), 4
    models = [tiny_model(seed) for seed in range(3)]
    text, negative, latents = draw(BATCH, 5, 10, seed=3), draw(BATCH, 5, 10, seed=4), clip(config, chunks)
    free = None if guidance == 1.0 else memory_of(models[2], negative)
    networks = Networks(*(memory_of(model, text) for model in models), free)
    settings = Consistency(grid=5, shift=2.0, guidance=guidance)
    loss = consistency_loss(networks, latents, settings, torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    drawn = torch.randint(4, (BATCH,), generator=generator)
    noise = torch.cat(
        [torch.randn(latents[:, :, :2].shape, generator=generator) for _ in range(chunks)], dim=2
    ).double()
    even = 1 - torch.arange(6).double() / 5
    sigmas = 2 * even / (1 + even)
    high, low = (sigmas[drawn + i][:, None, None, None, None] for i in range(2))

    def velocity(model, noisy, sigma, of_text):
        timestep = (1000 * sigma[:, 0, 0, 0]).expand(-1, latents.shape[2])
        return Equations(model).run(latents, noisy, timestep, of_text)[0][:, :, latents.shape[2] :]

    x = (1 - high) * latents.double() + high * noise
    v = velocity(models[2], x, high, text)
    if guidance != 1.0:
        u = velocity(models[2], x, high, negative)
        v = u + guidance * (v - u)
    below = x + (low - high) * v
    target = below - low * velocity(models[1], below, low, text)
    student = x - high * velocity(models[0], x, high, text)
    assert_close(loss, (student - target).square().mean(), rtol=1e-4, atol=0)


def test_only_the_student_learns():
    models = [tiny_model(seed).requires_grad_(True) for seed in range(3)]
    networks = Networks(*(memory_of(model) for model in models), None)
    latents = clip(models[0].config, 3)
    consistency_loss(networks, latents, Consistency(guidance=1.0), torch.Generator()).backward()
    assert all(parameter.grad is not None for parameter in models[0].parameters())
    # Of the others text embeddings alone are made outside; nothing reaches them.
    assert all(parameter.grad is None for model in models[1:] for parameter in model.parameters())


@pytest.mark.parametrize("whole", [False, True], ids=["causal", "whole clip"])
def test_scores_of_a_clip_are_those_of_one_masked_forward(whole):
    chunks = 3
    config = tiny_config(chunk=6, sink=0, history=0) if whole else tiny_config()
    model = randomise(VideoMLA(config))
    noisy, clean = (draw(BATCH, 3, 2 * chunks, 4, 6, seed=s) for s in (1, 2))
    text, sigma = draw(BATCH, 5, 10, seed=3), torch.tensor([0.3, 0.8])
    velocity = clip_velocity(memory_of(model, text), noisy, clean, sigma)
    timestep = (1000 * sigma)[:, None].expand(-1, 2 * chunks)
    expected = Equations(model).run(clean, noisy, timestep, text)[0][:, :, 2 * chunks :]
    assert_close(velocity, expected, rtol=1e-4, atol=1e-4)


def test_scores_after_a_jump_see_the_sink_as_a_long_rollout_does():
    model, numbers = tiny_model(), [0, 6, 7, 8]
    noisy, clean = (clip(model.config, 4, seed=s) for s in (1, 2))
    text, sigma = draw(BATCH, 5, 10, seed=3), torch.tensor([0.3, 0.8])
    velocity = clip_velocity(memory_of(model, text, numbers), noisy, clean, sigma)
    timestep = (1000 * sigma)[:, None].expand(-1, 8)
    expected = Equations(model).run(clean, noisy, timestep, text, numbers)[0][:, :, 8:]
    assert predicted(numbers) == [0, 7, 8]
    assert_close(velocity, torch.cat([expected[:, :, :2], expected[:, :, 4:]], 2), rtol=1e-4, atol=1e-4)


def test_the_generators_gradient_is_the_matching_gradient():
    x, fake, real = (draw(3, 4, 5, seed=s).requires_grad_(s == 1) for s in (1, 2, 3))
    gradient = matching_gradient(x.detach(), fake, real)
    for i in range(3):
        expected = (fake[i] - real[i]) / (x[i] - real[i]).abs().mean()
        assert_close(gradient[i], expected, rtol=1e-5, atol=1e-6)
    generator_loss(x, gradient).backward()
    assert_close(x.grad, gradient / x.numel(), rtol=1e-5, atol=1e-7)
    assert not matching_gradient(real, real, real).isnan().any()


def test_a_mask_leaves_frames_out():
    x, gradient = draw(2, 3, 4, 1, 1, seed=1).requires_grad_(True), draw(2, 3, 4, 1, 1, seed=2)
    generator_loss(x, gradient, torch.tensor([False, True, True, True])).backward()
    assert not x.grad[:, :, 0].any()
    assert_close(x.grad[:, :, 1:], gradient[:, :, 1:] / 18, rtol=1e-5, atol=1e-7)


def test_noise_levels_of_scores_are_shifted_and_kept_from_the_ends():
    sigma = score_sigma(torch.tensor([0.0, 0.25, 0.5, 0.999]), 5.0)
    assert_close(sigma, torch.tensor([0.02, 0.625, 5 / 6, 0.98]), rtol=1e-6, atol=1e-6)


def test_the_critics_loss_is_that_of_x0_over_sigma():
    """v = (x_t - x0) / sigma, as Self-Forcing writes it."""
    x, noise, velocity = (draw(2, 3, 4, 4, 4, seed=s) for s in (1, 2, 3))
    noisy = 0.3 * x + 0.7 * noise
    estimate = noisy - 0.7 * velocity
    expected = ((noisy - estimate) / 0.7 - (noise - x)).square().mean()
    assert_close(critic_loss(velocity, x, noise), expected, rtol=1e-4, atol=0)
