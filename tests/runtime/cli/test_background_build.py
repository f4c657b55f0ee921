"""The process that builds an engine in the background: what it leaves, however it ends."""

import os
import signal
import time

import pytest
import torch
from click.testing import CliRunner

from export.backends import aoti
from export.backends.aoti import AOTI, find_compiler
from plugins.documents.lock import lock_path, locked
from plugins.errors import UserError
from runtime.cli import background_build as build
from runtime.cli.background import measure, process
from runtime.cli.background.records import SPEED, Builds, log_path, nearest_measured
from runtime.cli.background_build import build_and_measure
from runtime.cli.run import main as vmla_run
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import find_engine
from vmla.cli.stopping import Interrupted, Stop
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

STARTER = process.start_detached
"""The real one, read before `no_process_outlives_a_test` takes it away."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the engine goes; compilers write a word, and the model itself stands in for the engine."""
    monkeypatch.setattr(aoti, "package", lambda program, path, options: path.write_text("compiled"))
    monkeypatch.setattr(AOTI, "check_tools", lambda self, options: None)
    monkeypatch.setattr(measure, "open_engine", lambda folder, checkpoint: eager(checkpoint))
    return tmp_path / "debug-aoti-fp32"


def eager(checkpoint):
    return EagerEngine(
        checkpoint.transformer(), checkpoint.text(), device=torch.device("cpu"), dtype=torch.float32
    )


def timed(monkeypatch, **seconds):
    monkeypatch.setattr(measure, "fewest_seconds", lambda steps: {name: seconds[name] for name in steps})


def begun(folder, checkpoint):
    return Builds.of(folder, open_checkpoint(checkpoint).model_hash())


def test_an_engine_that_is_faster_stays_with_what_was_measured(folder, checkpoint, monkeypatch, capsys):
    timed(monkeypatch, eager=0.03, engine=0.02)
    build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    known = nearest_measured(folder.parent, 1)
    assert known is not None and known.times_as_fast == pytest.approx(1.5)
    assert known.threads == 1 and known.build_seconds > 0 and known.checkpoint == checkpoint.name
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, folder.name + SPEED]
    assert "1.50 times as fast as the PyTorch model" in capsys.readouterr().out


def test_an_engine_that_is_slower_is_removed_and_not_built_again_unasked(folder, checkpoint, monkeypatch):
    timed(monkeypatch, eager=0.02, engine=0.03)
    with pytest.raises(UserError, match="0.67 times as fast"):
        build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    assert not folder.exists()
    assert "0.67 times as fast" in begun(folder, checkpoint).why_no_more()
    assert nearest_measured(folder.parent, 1).times_as_fast < 1  # so that it is not suggested either


@pytest.mark.parametrize(("factor", "error"), [(1.01, r"1\.0e-02"), (float("nan"), "nan")])
def test_an_engine_that_computes_something_else_is_removed(folder, checkpoint, monkeypatch, factor, error):
    class Wrong(EagerEngine):
        def step(self, inputs, *, held=None):
            velocity, entries = super().step(inputs, held=held)
            return velocity, factor * entries

    def opened(folder, checkpoint):
        cpu = torch.device("cpu")
        return Wrong(checkpoint.transformer(), checkpoint.text(), device=cpu, dtype=torch.float32)

    monkeypatch.setattr(measure, "open_engine", opened)
    with pytest.raises(UserError, match=f"differ from the model's by {error}"):
        build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    assert not folder.exists() and not list(folder.parent.glob(f"*{SPEED}"))


def test_a_compiler_that_fails_is_remembered(folder, checkpoint, monkeypatch):
    def failing(program, path, options):
        raise RuntimeError("internal compiler error\nat length")

    monkeypatch.setattr(aoti, "package", failing)
    with pytest.raises(RuntimeError):
        build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    assert begun(folder, checkpoint).why_no_more().startswith("it failed: internal compiler error")
    assert [path.name for path in folder.parent.iterdir()] == [Builds.path(folder).name]


def test_a_signal_is_counted_and_leaves_nothing(folder, checkpoint, monkeypatch):
    def stopped(program, path, options):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(aoti, "package", stopped)
    with pytest.raises(Interrupted):
        build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    found = begun(folder, checkpoint)
    assert found.failure is None  # it was counted when it was begun
    assert list(folder.parent.iterdir()) == []


def test_what_is_there_is_left_as_it_is(folder, checkpoint):
    folder.mkdir()
    (folder / "of somebody").touch()
    with pytest.raises(UserError, match="is there already"):
        build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    assert [path.name for path in folder.iterdir()] == ["of somebody"]
    assert begun(folder, checkpoint).why_no_more().startswith("it failed: ")


def test_no_video_finds_an_engine_before_it_is_checked(folder, checkpoint, monkeypatch):
    found = []

    def look(steps):
        engine, _ = find_engine(
            open_checkpoint(checkpoint), device="cpu", dtype="float32", engines=folder.parent
        )
        found.append(engine)
        return {"eager": 0.03, "engine": 0.02}

    monkeypatch.setattr(measure, "fewest_seconds", look)
    build_and_measure(open_checkpoint(checkpoint), folder, Stop())
    assert found == [None] and (folder / "manifest.json").exists()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The user's own engines, and the starter that tests are otherwise kept from."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "videomla" / "engines"


def asked(checkpoint, *more):
    words = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", "null", *more]
    done = CliRunner().invoke(vmla_run, words)
    assert done.exit_code == 0, done.output
    return done.output


def started(checkpoint):
    """The process that `vmla-run --build-engine` starts."""
    told = asked(checkpoint, "--build-engine").partition("(process ")[2]
    return int(told.partition(",")[0])


def until(condition, seconds=300):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.slow
def test_a_process_of_its_own_builds_the_engine_that_the_next_video_takes(checkpoint, store, monkeypatch):
    """First it is killed midway, then refused by the lock, then it comes to its end."""
    monkeypatch.setattr(process, "start_detached", STARTER)
    number = started(checkpoint)
    folder = store / f"{checkpoint.name}-aoti-fp32"
    assert os.getsid(number) == number != os.getsid(0)
    until(lambda: list(store.glob(".*building/*")) or list(store.glob(".*building")))
    assert os.getpriority(os.PRIO_PROCESS, number) > os.getpriority(os.PRIO_PROCESS, 0)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    assert "engine: eager" in asked(checkpoint, "--dry-run") and begun(folder, checkpoint).begun == 1

    with locked(folder):
        words = [str(checkpoint), str(folder)]
        _, status = os.waitpid(STARTER(build.__name__, words, log_path(folder)), 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert "is being made already" in log_path(folder).read_text()

    _, status = os.waitpid(started(checkpoint), 0)
    told = log_path(folder).read_text()
    assert os.waitstatus_to_exitcode(status) == 0, told
    assert "compile step" in told and "times as fast as the PyTorch model" in told
    assert not list(store.glob(".*")) and not lock_path(folder).exists() and not Builds.path(folder).exists()
    assert f"engine: {folder} (found" in asked(checkpoint)
