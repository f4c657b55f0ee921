"""Signals: the first ends a command tidily, the second at once, whatever it is doing."""

import json
import os
import signal
import time

import click
import pytest
import torch
from click.testing import CliRunner
from kit.processes.commands import Commands
from kit.refusals import assert_one_line

from runtime.cli.run import main
from runtime.outputs.mp4 import Mp4Sink
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import Rollout
from vmla.train.cli.commands import main as train
from vmla.train.loop import loop

pytestmark = pytest.mark.cpu

STUCK = """
import time
from runtime.outputs.mp4 import Mp4Sink
usual = Mp4Sink.write
def write(sink, frames):
    if sink.mark()["frames"] >= 24:
        open(f"{sink.path}.stuck", "w").close()
        while True:
            time.sleep(600)
    usual(sink, frames)
Mp4Sink.write = write
"""


ENDING = """
import atexit, sys, time
def ending():
    open({there!r}, "w").close()
    time.sleep(600)
atexit.register(ending)
sys.argv = ["vmla-run", *order["run"]]
main()
"""
"""The command as the process's own, which takes its time to end."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


def asked(checkpoint, output, chunks):
    return ("--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", chunks, "--scale", 1,
            "--save-every", 0, "-o", output)  # fmt: skip


def wait_for(path, started):
    while started.running() and not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_finishes_the_chunk_and_says_how_to_go_on(commands, checkpoint, tmp_path, number):
    output = tmp_path / "a.mp4"
    started = commands.start(*asked(checkpoint, output, 4000))
    wait_for(output, started)
    started.send(number)
    status, said = started.wait()
    assert status == 128 + number, said
    assert said.rstrip().endswith(f"stopped; resume with: vmla-run --resume {output}")  # no progress after it
    assert "Traceback" not in said
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["complete"] is False and told["frames_written"] % 12 == 0


def test_the_second_leaves_a_sink_that_blocks_for_ever(commands, checkpoint, tmp_path):
    output = tmp_path / "a.mp4"
    started = commands.start(*asked(checkpoint, output, 40), before=STUCK)
    wait_for(tmp_path / "a.mp4.stuck", started)
    wait_for(tmp_path / "a.mp4.state", started)
    started.send(signal.SIGINT)
    time.sleep(0.5)
    assert started.running()
    began = time.monotonic()
    started.send(signal.SIGTERM)
    status, said = started.wait()
    assert time.monotonic() - began < 60  # and not the ten minutes for which the sink sleeps
    assert status == 128 + signal.SIGTERM
    assert f"stopped; resume with: vmla-run --resume {output}" in said
    assert CliRunner().invoke(main, ["--resume", str(output)]).exit_code == 0


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_the_second_ends_without_a_word_what_is_ending(commands, checkpoint, tmp_path, first, second):
    """After the closing line: Python would die of the one and print a traceback for the other."""
    output, there = tmp_path / "a.mp4", tmp_path / "ending"
    started = commands.start(*asked(checkpoint, output, 4000), before=ENDING.format(there=str(there)))
    wait_for(output, started)
    started.send(first)
    wait_for(there, started)
    assert started.running()
    started.send(second)
    status, said = started.wait()
    assert status == 128 + second, said
    assert f"stopped; resume with: vmla-run --resume {output}" in said
    assert "Traceback" not in said


def test_training_finishes_its_step_and_goes_on(tmp_path, monkeypatch):
    order, usual = ["run", "debug", "-o", str(tmp_path), "--until", "codec"], loop._advance
    at_once = []

    def advance(stage, progress, parallel):
        if progress.step == 1:
            at_once.extend(click.get_current_context().obj.parting("stopped"))
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(stage, progress, parallel)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_advance", advance)
        result = CliRunner().invoke(train, order)
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    assert at_once == [f"stopped; {tmp_path} keeps step 0 of codec; run the same command again to continue"]
    step = torch.load(tmp_path / "codec.pt", weights_only=True)["step"]
    assert step > 1
    kept = (
        f"stopped by SIGTERM; {tmp_path} keeps step {step} of codec; run the same command again to continue"
    )
    assert result.output.splitlines()[-1] == kept
    assert {path.name for path in tmp_path.iterdir()} == {"codec.pt", "codec.jsonl"}
    assert CliRunner().invoke(train, [*order, "--stop-after", "1"]).exit_code == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "codec.jsonl").read_text().splitlines()]
    assert steps == list(range(1, step + 2))


@pytest.mark.parametrize("odd", [b"\0\0\0\n", b"[]\n", b'{"step": "1"}\n', b"\xff\n", None])
def test_a_damaged_log_of_training_is_named(tmp_path, odd):
    log = tmp_path / "codec.jsonl"
    log.write_bytes(odd) if odd else os.mkfifo(log)
    assert_one_line(CliRunner().invoke(train, ["run", "debug", "-o", str(tmp_path)]), str(log))


FAULTS = {
    "denoiser": (Rollout, "denoise", RuntimeError("out of memory\nand more"), "RuntimeError: out of memory;"),
    "memory": (Rollout, "denoise", MemoryError(), "chunk 2 failed: memory ran out;"),
    "thread": (CodecDecoder, "decode", SystemExit(3), "SystemExit: 3;"),
    "encoder": (Mp4Sink, "write", ValueError("no such picture"), "ValueError: no such picture;"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_fails_ends_in_one_line_that_says_how_to_go_on(checkpoint, tmp_path, monkeypatch, name):
    place, method, error, fragment = FAULTS[name]
    usual, calls, output = getattr(place, method), [], tmp_path / "a.mp4"

    def failing(*arguments):
        calls.append(method)
        if len(calls) == 3:
            time.sleep(0.5)  # the state before it is on disk
            raise error
        return usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, method, failing)
        result = CliRunner().invoke(main, [str(each) for each in asked(checkpoint, output, 6)])
    assert result.exit_code == 2, result.output
    last = result.output.splitlines()[-1]
    assert fragment in last and "24 frames were kept" in last and "Traceback" not in result.output
    assert last.endswith(f"resume with: vmla-run --resume {output}")
    assert CliRunner().invoke(main, ["--resume", str(output)]).exit_code == 0
    assert json.loads((tmp_path / "a.mp4.json").read_text())["complete"] is True
