"""Engines take the slots that hold a frame: at every fill level and after a `reset` they equal the model."""

import pytest
from kit.measure import assert_close
from kit.tiny.passes import pass_inputs

from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.rollout.rollout import Rollout
from vmla.scheduler import Sampler
from vmla.transformer import StepInputs

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("frame", [0, 1, 2, 3, 4, 5, 30])
def test_a_pass_equals_the_model_however_many_slots_hold_a_frame(engine, eager, frame):
    """One is what is left after a `reset`, where the sink is one frame; the others hold poison."""
    inputs = StepInputs(**pass_inputs(eager.config, 0, seed=frame, frame=frame))
    held = min(frame, eager.cache_spec.slots)
    for said in (held, None):
        for got, want in zip(engine.step(inputs, held=said), eager.step(inputs), strict=True):
            assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert engine.manifest.window == "held"
    assert engine.computation(held) == held


def test_a_hole_among_the_slots_is_refused(engine, eager):
    inputs = pass_inputs(eager.config, 9)
    inputs["slot_index"][0] = -1
    with pytest.raises(ValueError, match="slots fill in order"):
        engine.step(StepInputs(**inputs))


def test_a_rollout_equals_the_model_through_reset_and_recache(engine, eager):
    changes = [(0, "one", "keep"), (3, "another", "recache"), (5, "a third", "reset")]
    prompts = PromptSchedule([PromptChange(chunk=n, prompts=(t,), policy=p) for n, t, p in changes])
    made, wanted = [], []
    for one, latents in ((engine, made), (eager, wanted)):
        videos = Rollout(one, prompts, Sampler(kind="renoise", steps=2), seeds=[1])
        for _ in range(8):
            latents.append(videos.denoise())
            videos.update_cache()
    for got, want in zip(made, wanted, strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-3)
