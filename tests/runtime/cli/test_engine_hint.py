"""After a long video without an engine, `vmla-run` says which command builds one."""

import signal
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from export.backends import aoti
from export.backends.aoti import AOTI
from export.backends.base import Offer
from runtime.cli import engine_hint as hints
from runtime.cli.engine_hint import SPEED_UP, engine_hint
from runtime.cli.export import main as export
from runtime.cli.run import main
from vmla.cli.stopping import Interrupted

pytestmark = pytest.mark.cpu


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """A machine with a C++ compiler."""
    monkeypatch.setattr(AOTI, "offer", lambda self, gpu, target: Offer(reason="a compiler is here"))


def job(**changes):
    config = SimpleNamespace(first_chunk=changes.pop("first_chunk", 0))
    plain = {
        "engine_folder": None, "device": torch.device("cpu"), "dtype": torch.float32,
        "fp8_cache": False,
        "checkpoint": SimpleNamespace(model_config=lambda: config),
    }  # fmt: skip
    return SimpleNamespace(**plain | changes)


def test_a_long_video_names_the_command_and_what_it_may_save():
    saving, command = engine_hint(job(), "my model", 147.0)
    assert f"about 62 of the 147 s that denoising took, if it is {SPEED_UP} times" in saving
    words = command.partition("vmla-export build ")[2]
    assert words == "--checkpoint 'my model' --precision fp32 --backend aoti --device cpu"
    options = {name for option in export.commands["build"].params for name in option.opts}
    assert {"--checkpoint", "--backend", "--precision"} <= options


@pytest.mark.parametrize(
    "changes",
    [
        {"engine_folder": "x"},
        {"device": torch.device("cuda")},
        {"dtype": torch.bfloat16},
        {"fp8_cache": True},
        {"first_chunk": 1},
    ],
)
def test_nothing_is_said_where_no_engine_is_known_to_be_faster(changes):
    assert engine_hint(job(**changes), "sprites", 1000.0) == []


def test_nothing_is_said_of_a_short_video_or_without_a_compiler(monkeypatch):
    assert engine_hint(job(), "sprites", hints.LONG_SECONDS - 1) == []
    monkeypatch.setattr(AOTI, "offer", lambda self, gpu, target: None)
    assert engine_hint(job(), "sprites", 1000.0) == []


def test_the_command_says_it_last_and_not_where_the_model_itself_was_asked_for(checkpoint, monkeypatch):
    monkeypatch.setattr(hints, "LONG_SECONDS", 0.0)
    asked = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", "null"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert "vmla-export build --checkpoint" in done.output.splitlines()[-1]
    assert "vmla-export build" not in CliRunner().invoke(main, [*asked, "--engine", "eager"]).output


@pytest.fixture
def store(monkeypatch, tmp_path):
    """The user's own engines, none yet; compilers write a word, and priorities stay."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(aoti, "package", lambda program, path, options: path.write_text("compiled"))
    monkeypatch.setattr(AOTI, "check_tools", lambda self, options: None)
    monkeypatch.setattr(hints.os, "nice", lambda niceness: niceness)
    return tmp_path / "data" / "videomla" / "engines"


def asked(checkpoint, *more):
    words = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", "null", *more]
    return CliRunner().invoke(main, words)


def test_the_engine_that_is_built_after_a_video_is_found_by_the_next(checkpoint, store):
    done = asked(checkpoint, "--build-engine")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("the video is finished"))
    assert any("compile step" in line for line in lines[place:])
    (folder,) = store.iterdir()
    assert lines[-1].startswith(f"{folder}: built")
    assert f"engine: {folder} (found" in asked(checkpoint, "--dry-run").output


def test_a_signal_leaves_the_build_out_and_nothing_of_it(checkpoint, store, monkeypatch):
    def stopped(program, path, options):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(aoti, "package", stopped)
    done = asked(checkpoint, "--build-engine")
    assert done.exit_code == 130
    assert "run the same command again to build it" in done.output
    assert not list(store.iterdir())


def test_no_engine_is_built_where_none_is_faster_or_no_video_would_take_it(checkpoint, store, monkeypatch):
    refused = asked(checkpoint, "--build-engine", "--engine", "eager")
    assert refused.exit_code == 2
    assert "--build-engine goes with one new video; leave out --engine" in refused.output
    monkeypatch.setattr(AOTI, "offer", lambda self, gpu, target: None)
    assert "no engine is built" in asked(checkpoint, "--build-engine").output
    assert not store.exists()
