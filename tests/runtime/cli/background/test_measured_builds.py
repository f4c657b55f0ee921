"""`vmla-export build` measures what an engine of the user's own gains, beside the engine and never in it."""

import pytest
import torch
from click.testing import CliRunner

from export.backends import aoti
from export.backends.aoti import AOTI
from runtime.cli.background import after, measure
from runtime.cli.background.records import SPEED, nearest_measured
from runtime.cli.background.worth import Estimate
from runtime.cli.export import main
from runtime.engines.base import EagerEngine

pytestmark = pytest.mark.cpu


class Twin(EagerEngine):
    """Stands in for the engine: the model itself, its results times `factor`."""

    factor = 1.0

    def step(self, inputs, *, held=None):
        return tuple(self.factor * each for each in super().step(inputs, held=held))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Compilers that write a word; an engine that takes 20 ms a pass, where the model takes 30."""
    monkeypatch.setattr(aoti, "package", lambda program, path, options: path.write_text("compiled"))
    monkeypatch.setattr(AOTI, "check_tools", lambda self, options: None)
    monkeypatch.setattr(measure, "open_engine", twin)
    monkeypatch.setattr(measure, "fewest_seconds", lambda steps: {"eager": 0.03, "engine": 0.02})
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "videomla" / "engines"


def twin(folder, checkpoint):
    cpu = torch.device("cpu")
    return Twin(checkpoint.transformer(), checkpoint.text(), device=cpu, dtype=torch.float32)


def build(checkpoint, *more):
    words = ["build", "--checkpoint", checkpoint, "--backend", "aoti", "--device", "cpu", *more]
    return CliRunner().invoke(main, [str(word) for word in words])


def test_what_it_gains_is_known_to_later_runs_and_the_engine_is_as_without(checkpoint, store, tmp_path):
    done = build(checkpoint)
    assert done.exit_code == 0, done.output
    built, measured = done.output.splitlines()[-2:]
    assert ": built, " in built
    assert measured == "it is 1.50 times as fast as the PyTorch model: 20.0 ms a pass"
    folder = store / f"{checkpoint.name}-aoti-fp32"
    assert {path.name for path in store.iterdir()} == {folder.name, folder.name + SPEED}
    known = nearest_measured(store, 1)
    assert known.times_as_fast == pytest.approx(1.5) and 0 < known.build_seconds < 600
    assert Estimate.of(store, 1).source == f"measured here with {checkpoint.name}"
    assert build(checkpoint, "-o", tmp_path / "other").exit_code == 0
    files = [
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, tmp_path / "other")
    ]
    assert files[0] == files[1]


def test_one_that_is_there_is_not_measured_again(checkpoint, store):
    assert build(checkpoint).exit_code == 0
    (store / f"{checkpoint.name}-aoti-fp32{SPEED}").unlink()
    again = build(checkpoint)
    assert again.exit_code == 0 and ": unchanged, " in again.output.splitlines()[-1]
    assert not list(store.glob(f"*{SPEED}"))


@pytest.mark.parametrize("options", [("--batch", 2), ("--precision", "fp16"), ("-o", "here")])
def test_only_what_a_video_takes_by_itself_is_measured(checkpoint, store, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = build(checkpoint, *options)
    assert done.exit_code == 0 and ": built, " in done.output.splitlines()[-1]
    assert not list(tmp_path.rglob(f"*{SPEED}"))


def test_a_large_model_s_is_not_measured(checkpoint, store, monkeypatch):
    monkeypatch.setattr(after, "LARGEST", 1)
    assert build(checkpoint).exit_code == 0 and not list(store.glob(f"*{SPEED}"))


def test_one_that_is_slower_stays_and_says_how_to_do_without(checkpoint, store, monkeypatch):
    monkeypatch.setattr(measure, "fewest_seconds", lambda steps: {"eager": 0.02, "engine": 0.04})
    done = build(checkpoint)
    assert done.exit_code == 0
    first, second = done.output.splitlines()[-2:]
    assert "0.50 times as fast" in first and "--engine eager" in second
    assert Estimate.of(store, 1).times_as_fast == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_one_that_computes_something_else_is_named(checkpoint, store, monkeypatch, factor):
    monkeypatch.setattr(Twin, "factor", factor)
    folder = store / f"{checkpoint.name}-aoti-fp32"
    done = build(checkpoint)
    assert done.exit_code == 2, done.output
    last = done.output.splitlines()[-1]
    assert last.startswith(f"Error: later videos would use {folder}, but the engine's results differ")
    assert last.endswith(f"look closer with vmla-export verify {folder}, or remove it")
    assert (folder / "manifest.json").exists() and not list(store.glob(f"*{SPEED}"))
