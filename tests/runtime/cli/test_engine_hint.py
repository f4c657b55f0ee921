"""After a long video without an engine, `vmla-run` says which command builds one."""

from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from export.backends.aoti import AOTI
from export.backends.base import Offer
from runtime.cli import engine_hint as hints
from runtime.cli.engine_hint import SPEED_UP, engine_hint
from runtime.cli.export import main as export
from runtime.cli.run import main

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
    assert f"some 47 of the 147 s that denoising took, if it is {SPEED_UP} times" in saving
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
