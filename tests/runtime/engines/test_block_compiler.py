"""When blocks are compiled, what is said of it, and where the code is kept."""

import os
from pathlib import Path

import pytest
import torch

from bench.harness.subject import PROMPT, RandomText, random_model
from plugins.errors import UserError
from runtime.engines.base import EagerEngine
from runtime.engines.block_compiler import (
    REPAYING_CHUNKS,
    choose_compiled,
    code_cache,
    compiled_line,
    set_inductor_cache,
)
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.rollout import Rollout
from vmla.config import named_config
from vmla.scheduler import Sampler

pytestmark = pytest.mark.cpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG = REPAYING_CHUNKS


@pytest.mark.parametrize(("wish", "device", "engine", "chunks", "wanted"), [
    (None, GPU, None, LONG, True), (None, GPU, None, LONG - 1, False), (None, CPU, None, LONG, False),
    (None, GPU, Path("engine"), LONG, False), (True, GPU, None, 1, True), (False, GPU, None, LONG, False),
])  # fmt: skip
def test_only_a_long_video_on_a_gpu_repays_it_unless_asked(wish, device, engine, chunks, wanted):
    assert choose_compiled(wish, device, engine, chunks) is wanted


@pytest.mark.parametrize(("device", "engine", "said"), [
    (CPU, None, "for a GPU, not cpu"), (GPU, Path("engine"), "engine is compiled already"),
])  # fmt: skip
def test_a_wish_that_cannot_be_fulfilled_is_refused(device, engine, said):
    with pytest.raises(UserError, match=said):
        choose_compiled(True, device, engine, 1)


def test_the_choice_is_said():
    assert "--no-compile" in compiled_line(True, 7)
    assert str(LONG) in compiled_line(False, 7)


def test_code_is_kept_in_the_users_own_cache_unless_the_user_named_another(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "there")
    set_inductor_cache(code_cache())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "there"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    set_inductor_cache(None)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    set_inductor_cache(code_cache())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "videomla" / "inductor")
    monkeypatch.undo()


def test_a_job_on_a_cpu_is_never_compiled_and_says_nothing_of_it():
    job, _ = prepare("a red star", None, chunks=LONG, compiled=None)
    assert not job.compiled
    assert not any("blocks" in line for line in job.what_runs())
    with pytest.raises(UserError, match="--compile is for a GPU"):
        prepare("a red star", None, chunks=1, compiled=True)


@pytest.fixture
def compiler(monkeypatch):
    """In place of `torch.compile`: what it is given runs as it is, and calls of it are counted."""
    calls = []

    def compiled(function, **_):
        def run(*arguments, **named):
            calls.append(function)
            return function(*arguments, **named)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    return calls


def engine(**settings):
    model = random_model(named_config("debug"))
    return EagerEngine(model, RandomText(model.config), device=CPU, dtype=torch.float32, **settings)


def videos(engine):
    return Rollout(engine, FixedPrompts(PROMPT), Sampler(steps=2), seeds=[0])


def chunks(rollout, count):
    """Each chunk's latents, and the slots held when it was made."""
    for _ in range(count):
        made = rollout.denoise().clone()
        yield made, rollout.buffers.held
        rollout.update_cache()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("fp8_cache", [False, True])
def test_nothing_is_compiled_until_the_window_is_full_and_all_that_follows_is(compiler, fp8, fp8_cache):
    settings = {"fp8": fp8, "fp8_cache": fp8_cache}
    one = engine(compiled=True, **settings)
    plain = [made for made, _ in chunks(videos(engine(**settings)), 6)]
    windows = []
    for number, (made, held) in enumerate(chunks(videos(one), 6)):
        windows.append(held == one.cache_spec.slots)
        assert bool(compiler) is windows[-1]
        assert made.equal(plain[number])  # the same weights, and here the same operations
        compiler.clear()
    assert windows == sorted(windows) and {*windows} == {False, True}


def test_the_form_depends_on_the_window_alone_whatever_ran_before(compiler):
    one = engine(compiled=True)
    slots = one.cache_spec.slots
    wanted = [one._model, one._full]
    for held in (slots, 0, slots, 1, None, slots, slots - 1):
        assert one._form(held) == (wanted[held == slots], held == slots)
    assert one._full is not one._model


def test_both_forms_share_every_weight_and_the_table_of_timesteps(compiler):
    one = engine(compiled=True)
    pairs = zip(one._model.named_parameters(), one._full.named_parameters(), strict=True)
    assert all(left == right and a is b for (left, a), (right, b) in pairs)
    assert one._model.condition_embedder is one._full.condition_embedder
    assert all("forward" not in vars(block) for block in one._model.blocks)
    assert all("forward" in vars(block) for block in one._full.blocks)


def test_what_is_not_compiled_has_one_form(compiler):
    one = engine()
    assert one._full is one._model and not compiler
