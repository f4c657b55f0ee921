"""When blocks are compiled, what is said of it, and where the code is kept."""

import os
from pathlib import Path

import pytest
import torch

from plugins.errors import UserError
from runtime.engines.block_compiler import (
    REPAYING_CHUNKS,
    choose_compiled,
    code_cache,
    compiled_line,
    set_inductor_cache,
)
from runtime.planning.request import prepare

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
