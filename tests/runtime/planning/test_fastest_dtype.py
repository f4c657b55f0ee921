"""`--dtype fastest` measures on a CPU; `auto` never does, so that no timing decides on a seed's video."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from runtime.cli.run import main
from runtime.planning import compute, request
from runtime.planning.compute import CLEARLY, choose_dtype, fastest_dtype
from runtime.planning.request import prepare
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU, WIDE, NARROW = torch.device("cpu"), torch.float32, torch.bfloat16


def never():
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize(
    "name, device, dtype",
    [
        ("auto", "cpu", WIDE),
        ("auto", "cuda", NARROW),
        ("fastest", "cuda", NARROW),
        ("float16", "cpu", torch.float16),
    ],
)
def test_no_other_name_is_measured(name, device, dtype):
    assert choose_dtype(name, torch.device(device), never) == (dtype, "")


def test_fastest_is_what_was_measured_on_a_cpu():
    assert choose_dtype("fastest", CPU, lambda: (NARROW, "because")) == (NARROW, "because")


@pytest.mark.parametrize(
    "narrow, dtype", [(1.0, WIDE), (1.01 / CLEARLY, WIDE), (0.99 / CLEARLY, NARROW), (3.0, WIDE)]
)
def test_bfloat16_has_to_be_clearly_faster(narrow, dtype, checkpoint):
    threads = []

    def measure(config, types):
        threads.append(torch.get_num_threads())
        assert types == (WIDE, NARROW) and config == open_checkpoint(checkpoint).model_config()
        return {WIDE: 1e-3, NARROW: narrow * 1e-3}

    found, told = fastest_dtype(open_checkpoint(checkpoint), None, 1, measure)
    assert found == dtype and threads == [1]
    assert told == f"a step of two blocks took 1.0 ms in float32, {narrow:.1f} ms in bfloat16"


def test_an_engine_in_float32_is_taken_without_measuring(checkpoint, monkeypatch, tmp_path):
    def found(opened, *, device, dtype, engines):
        assert (device, dtype, engines) == ("cpu", "float32", tmp_path)
        return tmp_path / "engine", "found"

    monkeypatch.setattr(compute, "find_engine", found)
    assert fastest_dtype(open_checkpoint(checkpoint), tmp_path, 1, lambda *what: never())[0] == WIDE


def test_an_engine_that_cannot_do_as_asked_decides_nothing(checkpoint, monkeypatch, tmp_path):
    """A cache in float8 is read by no engine, so the type is measured even where an engine is there."""
    monkeypatch.setattr(compute, "find_engine", lambda *what, **how: never())
    monkeypatch.setattr(request, "fastest_dtype", lambda opened, engines, threads: (NARROW, str(engines)))
    job, _ = prepare("a red star", checkpoint, chunks=1, dtype="fastest", cache="fp8", engines=tmp_path)
    assert (job.dtype, job.dtype_reason) == (NARROW, "None")


def test_the_command_says_what_it_measured_and_a_repeated_video_takes_the_type(
    checkpoint, monkeypatch, tmp_path
):
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    monkeypatch.setattr(request, "fastest_dtype", lambda *what: (NARROW, "it was fast"))
    words = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "2"]
    done = CliRunner().invoke(main, [*words, "--dtype", "fastest", "-o", str(first)])
    assert done.exit_code == 0, done.output
    assert "type: bfloat16 (it was fast)" in done.output
    assert json.loads(Path(f"{first}.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr(request, "fastest_dtype", lambda *what: never())
    for more in ([], ["--dtype", "fastest", "--overwrite"]):  # as it may stand in a file of options
        done = CliRunner().invoke(main, ["--repeat", f"{first}.json", "-o", str(again), *more])
        assert done.exit_code == 0, done.output
        assert first.read_bytes() == again.read_bytes()
