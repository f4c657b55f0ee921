"""Guidance: a second pass over the same window, told the negative prompt, and u + w (c - u) of the two."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from kit.measure import assert_close

from plugins.documents.typed import typed
from plugins.errors import UserError
from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts, PromptChange, PromptSchedule
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import Rollout, rollout
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler, keyed_noise
from vmla.train.objectives.cached_rollout import CachedRollout
from vmla.train.objectives.self_forcing import self_rollout
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

PROMPT, OTHER = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
EULER, SEEDS = Sampler(kind="euler", steps=3), [4, 9]


@pytest.fixture(scope="module")
def opened(checkpoint):
    return open_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def engine(opened):
    return EagerEngine(
        opened.transformer(), opened.text(), device=torch.device("cpu"), dtype=torch.float32, as_it_is=True
    )


def made(engine, sampler, chunks=4):
    """Latents [B, z, frames, h, w]."""
    prompts = FixedPrompts(*[PROMPT] * len(SEEDS))
    stream = rollout(engine, NoDecoder(), prompts, sampler, seeds=SEEDS, chunks=chunks)
    return torch.cat([chunk.frames for chunk in stream], dim=1).transpose(1, 2)


def by_formula(engine, opened, sampler, chunks=4, opening=None):
    """The same with nothing but the model: both passes see the cache that the prompt alone has written.

    `opening`: steps and weight of the first chunk, which goes to x0 and back up with fresh noise.
    """
    model, config, text = opened.transformer(), engine.config, opened.text()
    told, free = (model.encode_text(text([what] * 2)) for what in (PROMPT, sampler.negative_prompt))
    videos, usual = CachedRollout(model, CacheSpec.of(config), told), sampler.sigmas().tolist()
    picture = (config.in_channels, config.chunk, config.sample_height, config.sample_width)
    found = []
    for number in range(chunks):
        draws = [
            torch.stack([keyed_noise(picture, seed=seed, chunk=number, step=step) for seed in SEEDS])
            for step in range(9)
        ]
        x, opens = draws[0], opening is not None and number == 0
        steps, weight = opening if opens else (sampler.steps, sampler.guidance_scale)
        even = torch.linspace(1, 0, steps + 1).tolist()
        sigmas = [5 * s / (1 + 4 * s) for s in even] if opens else usual
        for step, (sigma, below) in enumerate(pairwise(sigmas)):
            passes = (videos.velocity(x, torch.full((2,), sigma), number, text_kv=kv) for kv in (told, free))
            conditional, unconditional = passes
            towards = unconditional + weight * (conditional - unconditional)
            again = (1 - below) * (x - sigma * towards) + below * draws[step + 1]
            x = again if opens else x + (below - sigma) * towards
        found.append(x)
        videos.commit(x, number)
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("negative", [None, OTHER])
@torch.no_grad()
def test_a_guided_rollout_is_the_formula_at_every_step(engine, opened, negative):
    sampler = replace(EULER, guidance_scale=2.5, negative_prompt=negative)
    found = made(engine, sampler)
    assert_close(found, by_formula(engine, opened, sampler), rtol=0, atol=1e-4)
    assert (found - made(engine, EULER)).abs().max() > 1e-3


@pytest.mark.parametrize("usual", [1.0, 2.0])
@torch.no_grad()
def test_the_first_chunk_of_a_prompt_may_have_a_sampler_of_its_own(engine, opened, usual):
    opening = Sampler(kind="renoise", steps=5, guidance_scale=2.5)
    sampler = replace(EULER, guidance_scale=usual, opening=opening)
    found = made(engine, sampler)
    assert_close(found, by_formula(engine, opened, sampler, opening=(5, 2.5)), rtol=0, atol=1e-4)
    config, model = engine.config, opened.transformer()
    told, free = (model.encode_text(opened.text()([what] * 2)) for what in (PROMPT, None))
    videos = CachedRollout(model, CacheSpec.of(config), told)
    picture = (config.in_channels, config.sample_height, config.sample_width)
    rest = {"chunks": 4, "exit_step": None, "seeds": SEEDS, "negative_text_kv": free}
    assert_close(self_rollout(videos, sampler, picture, **rest), found, rtol=0, atol=1e-4)
    assert (sampler.passes, sampler.guided, sampler.with_steps(2).opening.steps) == (3 * int(usual), True, 2)
    assert sampler.with_guidance(1.0).guided is False


def test_every_prompt_opens_and_so_does_a_video_without_a_past(engine):
    one_step = Sampler(kind="euler", steps=1)
    changes = [
        PromptChange(chunk=0, prompts=(PROMPT,)),
        PromptChange(chunk=2, prompts=(OTHER,), policy="keep"),
    ]
    latents = {}
    for name, sampler in {
        "opened": replace(EULER, opening=one_step),
        "usual": EULER,
        "one": one_step,
    }.items():
        video = Rollout(engine, PromptSchedule(changes), sampler, seeds=[4])
        latents[name] = []
        for number in range(4):
            latents[name].append(video.denoise())
            video.buffers.latents.copy_(latents["opened"][number])  # so that each has the same past
            video.update_cache()
    for number, (opened_so, usual, one) in enumerate(zip(*latents.values(), strict=True)):
        assert torch.equal(opened_so, one if number in (0, 2) else usual)
        assert not torch.equal(opened_so, usual if number in (0, 2) else one)


def test_guidance_by_the_prompt_itself_changes_nothing(engine):
    itself = replace(EULER, guidance_scale=3.0, negative_prompt=PROMPT)
    assert_close(made(engine, itself), made(engine, EULER), rtol=0, atol=1e-4)


@torch.no_grad()
def test_training_rolls_out_as_the_runtime_does(engine, opened):
    sampler, model, config = replace(EULER, guidance_scale=2.0), opened.transformer(), engine.config
    told, free = (model.encode_text(opened.text()([what] * 2)) for what in (PROMPT, None))
    videos = CachedRollout(model, CacheSpec.of(config), told)
    picture = (config.in_channels, config.sample_height, config.sample_width)
    rest = {"chunks": 4, "exit_step": 2, "seeds": SEEDS}
    found = self_rollout(videos, sampler, picture, **rest, negative_text_kv=free)
    assert_close(found, made(engine, sampler), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="negative prompt"):
        self_rollout(videos, sampler, picture, **rest)


def test_no_prompt_is_told_as_zeros_beside_others(opened):
    text = opened.text()
    both = text([PROMPT, None])
    assert both[1].eq(0).all()
    assert torch.equal(both[:1], text([PROMPT]))
    with pytest.raises(UserError, match="empty"):
        text([PROMPT, ""])


def test_files_say_only_what_differs_from_those_of_old():
    assert EULER.settings() == {"kind": "euler", "steps": 3, "shift": 5.0}
    guided = replace(EULER, guidance_scale=2.0, negative_prompt=OTHER)
    assert Sampler(**guided.settings()) == guided
    assert (EULER.passes, guided.passes) == (3, 6)
    opens = replace(guided, opening=Sampler(kind="renoise", steps=2))
    read = typed(json.loads(json.dumps(opens.settings())), Sampler, "a file")
    assert read == opens and read.of_chunk(opens=True).negative_prompt == OTHER
    assert guided.of_chunk(opens=True) == guided == opens.of_chunk(opens=False)
    with pytest.raises(UserError, match="opening"):
        replace(EULER, opening=opens)
    with pytest.raises(UserError, match="guidance_scale"):
        Sampler(guidance_scale=-1.0)
    with pytest.raises(UserError, match="guidance_scale"):
        Sampler(guidance_scale=float("nan"))
