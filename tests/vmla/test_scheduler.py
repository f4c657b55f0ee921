"""Schedules are those of Self-Forcing, steps follow the flow, and noise depends on its key alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.measure import assert_close
from kit.tiny.models import draw

from plugins.errors import UserError
from vmla.scheduler import Sampler, add_noise, keyed_noise, shifted

pytestmark = pytest.mark.cpu

SHAPE = (3, 2, 4, 4)


def test_the_default_schedule_is_the_warped_list_of_self_forcing():
    sampler = Sampler()
    sigmas = torch.tensor([1, 0.9375, 0.833333, 0.625, 0])
    assert_close(sampler.sigmas(), sigmas, rtol=1e-6, atol=0)
    assert_close(sampler.timesteps(), torch.tensor([1000, 937.5, 833.3333, 625]), rtol=1e-6, atol=0)


def test_rolling_forcings_list_too():
    timesteps = torch.tensor([1000, 952.38, 882.35, 769.23, 555.56])
    assert_close(Sampler(steps=5).timesteps(), timesteps, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (4, 1.0), (50, 3.0), (1000, 8.0)])
def test_any_schedule_falls_from_one_to_zero(steps, shift):
    sigmas = Sampler(steps=steps, shift=shift).sigmas()
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_a_shift_of_one_changes_nothing_and_a_greater_one_stays_high():
    even = torch.linspace(0, 1, 11).double()
    assert_close(shifted(even, 1.0), even, rtol=1e-12, atol=0)
    assert (shifted(even, 5.0)[1:-1] > shifted(even, 2.0)[1:-1]).all()


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 1.0), (4, 5.0), (13, 3.0)])
def test_euler_is_exact_on_a_straight_flow(steps, shift):
    """With v = eps - x0 along x_t = (1 - sigma) x0 + sigma eps, x0 is where it ends."""
    sampler = Sampler(kind="euler", steps=steps, shift=shift)
    clean, noise = draw(*SHAPE, seed=1), draw(*SHAPE, seed=2)
    latents = noise
    for step, sigma in enumerate(sampler.sigmas()[:-1]):
        assert_close(latents, add_noise(clean, noise, sigma), rtol=0, atol=1e-5)
        latents = sampler.step(latents, noise - clean, step, None)
    assert_close(latents, clean, rtol=0, atol=1e-5)


def test_euler_follows_a_linear_velocity_field():
    """dx / dsigma = a x has the solution x e^(-a) at sigma 0; Euler's error falls with its steps."""
    start, rate, errors = draw(*SHAPE), 0.7, []
    exact = start * torch.tensor(-rate).exp()
    for steps in (50, 100, 200):
        sampler, latents = Sampler(kind="euler", steps=steps, shift=1.0), start
        for step in range(steps):
            latents = sampler.step(latents, rate * latents, step, None)
        errors.append(float((latents - exact).abs().max()))
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.05)


def test_few_steps_go_to_x0_and_back_up_with_fresh_noise():
    sampler, latents = Sampler(), draw(*SHAPE, seed=1)
    for step, (sigma, below) in enumerate([(1, 0.9375), (0.9375, 0.833333), (0.833333, 0.625)]):
        velocity, noise = draw(*SHAPE, seed=10 + step), draw(*SHAPE, seed=20 + step)
        clean = latents - sigma * velocity
        expected = (1 - below) * clean + below * noise
        latents = sampler.step(latents, velocity, step, noise)
        assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    velocity = draw(*SHAPE, seed=30)
    last = sampler.step(latents, velocity, 3, None)
    assert_close(last, latents - 0.625 * velocity, rtol=1e-5, atol=1e-5)


def test_a_perfect_model_gives_x0_whatever_the_noise():
    sampler, clean = Sampler(), draw(*SHAPE, seed=1)
    latents = keyed_noise(SHAPE, seed=0, chunk=0, step=0)
    for step, sigma in enumerate(sampler.sigmas()[:-1]):
        velocity = (latents - clean) / sigma
        fresh = keyed_noise(SHAPE, seed=0, chunk=0, step=step + 1) if sampler.needs_noise(step) else None
        latents = sampler.step(latents, velocity, step, fresh)
    assert_close(latents, clean, rtol=0, atol=1e-5)


def test_only_steps_that_renoise_need_noise():
    assert [Sampler().needs_noise(step) for step in range(4)] == [True, True, True, False]
    assert not any(Sampler(kind="euler").needs_noise(step) for step in range(4))


@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_steps_are_taken_in_float32(kind):
    latents, velocity, noise = (draw(*SHAPE, seed=seed).bfloat16() for seed in range(3))
    sampler = Sampler(kind=kind)
    noise = noise if sampler.needs_noise(1) else None
    out = sampler.step(latents, velocity, 1, noise)
    assert out.dtype == torch.float32
    wide = None if noise is None else noise.float()
    assert_close(out, sampler.step(latents.float(), velocity.float(), 1, wide), rtol=1e-6, atol=1e-6)


KEYS = st.tuples(st.integers(-(2**63), 2**64), st.integers(0, 10**6), st.integers(0, 1000))


@settings(deadline=None, max_examples=200)
@given(KEYS, KEYS)
def test_the_same_key_gives_the_same_noise_and_another_key_another(one, other):
    drawn = [keyed_noise((32,), seed=s, chunk=c, step=t) for s, c, t in (one, other, one)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0], drawn[1]) == (one == other)


def test_keys_of_the_same_digits_are_other_keys():
    keys = [(1, 11, 1), (11, 1, 1), (1, 1, 11), (111, 1, 0), (1, 111, 0), (-1, 11, 1)]
    drawn = [keyed_noise((8,), seed=s, chunk=c, step=t) for s, c, t in keys]
    assert len({tuple(noise.tolist()) for noise in drawn}) == len(keys)


def test_noise_minds_no_other_generator():
    torch.manual_seed(1)
    once = keyed_noise(SHAPE, seed=3, chunk=2, step=1)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after
    assert torch.equal(keyed_noise(torch.Size(SHAPE), seed=3, chunk=2, step=1), once)


def test_noise_of_neighbouring_keys_is_standard_normal_and_independent():
    keys = [(seed, chunk, step) for seed in (0, 1) for chunk in (0, 1, 11) for step in (0, 1)]
    drawn = torch.stack([keyed_noise((20_000,), seed=s, chunk=c, step=t) for s, c, t in keys])
    assert drawn.dtype == torch.float32
    correlation = torch.corrcoef(drawn) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.035  # five deviations of 1 / sqrt(20,000)
    assert drawn.mean(dim=1).abs().max() < 0.035
    assert (drawn.std(dim=1) - 1).abs().max() < 0.025


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "ddim"}, "no such sampler: ddim; use euler or renoise"),
        ({"steps": 0}, "0 denoising steps; use 1 to 1000"),
        ({"steps": 1001}, "1001 denoising steps"),
        ({"shift": 0.0}, "the shift is 0.0; use a positive number"),
        ({"shift": float("nan")}, "the shift is nan"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        Sampler(**changes)
