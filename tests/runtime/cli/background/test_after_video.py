"""After a video without an engine, `vmla-run` has one built in the background where it pays, or says how."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from export.backends.aoti import AOTI
from export.backends.base import Offer
from plugins.documents.lock import lock_path, locked
from runtime.cli.background import after, process
from runtime.cli.background.after import LARGEST, Finished, after_video
from runtime.cli.background.records import MOST_BUILDS, Builds, Measured, log_path
from runtime.cli.background.worth import BUILD_SECONDS, SPEED_UP, DenoiseTime, Estimate
from runtime.cli.export import main as export
from runtime.cli.run import main
from runtime.engines import compiled
from runtime.outputs.mp4 import Mp4Sink
from vmla.cli.machine import hardware
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

LONG = BUILD_SECONDS / (1 - 1 / SPEED_UP)
"""Seconds of denoising that just repay a build, where nothing was measured."""


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """A machine with a C++ compiler, and a user who has no engine yet."""
    monkeypatch.setattr(AOTI, "offer", lambda self, gpu, target: Offer(reason="a compiler is here"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "videomla" / "engines"


@pytest.fixture
def starts():
    """What was started: modules, arguments and logs."""
    return []


@pytest.fixture
def ended(checkpoint, starts, capsys):
    """Ends a video that took so many seconds to denoise, and returns the lines said after it."""

    def end(seconds, wish=None, *, complete=True, chunks=100, **changes):
        opened = open_checkpoint(checkpoint)
        plain = {
            "engine_folder": None, "device": torch.device("cpu"), "dtype": torch.float32, "fp8_cache": False,
            "processes": 1, "checkpoint": opened,
            "decoding": SimpleNamespace(sizes=lambda: SimpleNamespace(temporal_ratio=4)),
        }  # fmt: skip
        spent = DenoiseTime()
        spent.seconds, spent.chunks = seconds, chunks
        job = SimpleNamespace(**plain | changes)
        video = Finished(job=job, checkpoint="my model", complete=complete, spent=spent)
        after_video(video, wish, lambda *what: starts.append(what) or 4711)
        return capsys.readouterr().out.splitlines()

    return end


def measured(**changes):
    plain = {
        "checkpoint": "another", "weight_bytes": 10_000, "threads": 1, "build_seconds": 90.0,
        "eager_seconds": 0.3, "engine_seconds": 0.2, "machine": hardware(),
    }  # fmt: skip
    return Measured(**plain | changes)


def test_a_video_that_repays_a_build_has_one_begun_and_says_so(ended, starts, store, checkpoint):
    first, second = ended(LONG + 1)
    ((module, arguments, log),) = starts
    folder = store / f"{checkpoint.name}-aoti-fp32"
    assert module == "runtime.cli.background_build"
    assert arguments == [str(checkpoint.resolve()), str(folder)] and log == log_path(folder)
    assert "in the background (process 4711" in first and str(log) in first and "--no-build-engine" in first
    assert f"{SPEED_UP} times as fast (not measured on this machine)" in second
    assert "--engine eager" in second and store.is_dir()


def test_a_video_that_repays_none_names_the_command_if_it_was_long(ended, starts, monkeypatch):
    monkeypatch.setattr(after, "LONG_SECONDS", LONG / 2)
    saving, command = ended(LONG - 1)
    assert (
        f"about {BUILD_SECONDS * (LONG - 1) / LONG:.0f} of the {LONG - 1:.0f} s that denoising took" in saving
    )
    assert f"after {75 * LONG / (LONG - 1):.0f} s of such video" in saving  # 100 chunks of 0.75 s
    words = command.partition("vmla-export build ")[2]
    assert words == "--checkpoint 'my model' --precision fp32 --backend aoti --device cpu"
    options = {name for option in export.commands["build"].params for name in option.opts}
    assert {"--checkpoint", "--backend", "--precision"} <= options
    assert ended(LONG / 2 - 1) == [] and starts == []


def test_one_that_was_asked_for_is_begun_after_any_video_and_one_that_was_not_wanted_after_none(
    ended, starts
):
    assert "in the background" in ended(0.1, True)[0] and len(starts) == 1
    told = ended(10 * LONG, False)
    assert "vmla-export build" in told[-1] and len(starts) == 1


def test_a_stopped_video_has_none_built(ended, starts):
    assert "vmla-export build" in ended(10 * LONG, complete=False)[-1]
    told = ended(10 * LONG, True, complete=False)
    assert "no engine is built after a run that was stopped" in told[0] and "vmla-export build" in told[-1]
    assert starts == []


@pytest.mark.parametrize(
    "changes",
    [
        {"device": torch.device("cuda")},
        {"dtype": torch.bfloat16},
        {"fp8_cache": True},
        {"processes": 2},
        {"checkpoint": SimpleNamespace(model_config=lambda: SimpleNamespace(first_chunk=1))},
    ],
)
def test_nothing_happens_where_no_engine_is_known_to_be_faster(changes, ended, starts):
    assert ended(1000.0, **changes) == []
    assert "no engine is built" in ended(1000.0, True, **changes)[0]
    assert starts == []


def test_nothing_happens_after_an_engine_or_without_a_compiler(ended, starts, monkeypatch):
    assert ended(1000.0, engine_folder=Path("x")) == ended(1000.0, True, engine_folder=Path("x")) == []
    monkeypatch.setattr(AOTI, "offer", lambda self, gpu, target: None)
    assert ended(1000.0) == [] and starts == []


def test_a_build_that_failed_is_not_begun_again_unless_it_is_asked_for(ended, starts, store, checkpoint):
    store.mkdir(parents=True)
    folder, hashed = store / f"{checkpoint.name}-aoti-fp32", open_checkpoint(checkpoint).model_hash()
    Builds(**vars(Builds.of(folder, hashed)) | {"failure": "no room"}).write(folder)
    (told,) = ended(LONG + 1)
    assert "because it failed: no room" in told and str(log_path(folder)) in told
    assert "vmla-export build" in told and starts == []
    assert "in the background" in ended(0.1, True)[0]


def test_what_was_measured_on_this_machine_takes_the_place_of_what_was_measured_elsewhere(ended, store):
    store.mkdir(parents=True)
    measured(machine="another processor").write(store / "first")
    assert Estimate.of(store, 10_000).times_as_fast == SPEED_UP
    measured().write(store / "second")
    measured(weight_bytes=10**9, engine_seconds=0.1).write(store / "third")
    (store / "fourth.speed.json").write_text("{}")
    found = Estimate.of(store, 20_000)
    assert (round(found.times_as_fast, 2), found.build_seconds) == (1.5, 90.0)
    assert Estimate.of(store, 10**8).times_as_fast == pytest.approx(3)
    assert "1.50 times as fast, measured here with another" in ended(200.0)[0]


def test_an_engine_that_would_be_slower_is_never_suggested(ended, starts, store):
    store.mkdir(parents=True)
    measured(engine_seconds=0.4).write(store / "slower")
    assert ended(10_000.0) == [] and starts == []


def test_a_large_model_s_engine_is_not_built_unasked(ended, starts, monkeypatch):
    monkeypatch.setattr(after, "weight_bytes", lambda checkpoint: LARGEST + 1)
    assert "vmla-export build" in ended(10_000.0)[-1]
    assert starts == []


def test_none_is_begun_where_one_is_there_by_now(ended, starts, monkeypatch):
    monkeypatch.setattr(compiled, "find_engine", lambda *what, **how: (Path("there"), "found"))
    assert ended(10_000.0) == [] and starts == []
    assert ended(0.1, True) == ["there is there already"] and starts == []


def test_builds_that_end_before_they_can_say_so_are_counted(ended, starts, store, checkpoint):
    for _ in range(MOST_BUILDS):
        ended(LONG + 1)
    assert "did not come to their end" in ended(LONG + 1)[0]
    assert len(starts) == MOST_BUILDS
    folder = store / f"{checkpoint.name}-aoti-fp32"
    assert Builds.of(folder, open_checkpoint(checkpoint).model_hash()).begun == MOST_BUILDS


@pytest.mark.parametrize("wish", [None, True])
def test_none_is_begun_beside_a_build_that_is_under_way(wish, ended, starts, store, checkpoint):
    store.mkdir(parents=True)
    folder = store / f"{checkpoint.name}-aoti-fp32"
    with locked(folder):
        (told,) = ended(LONG + 1, wish)
        assert lock_path(folder).exists()
    assert "is being built already" in told and str(log_path(folder)) in told and starts == []
    assert "in the background" in ended(LONG + 1, wish)[0] and len(starts) == 1


def test_a_store_that_cannot_be_written_to_is_a_warning_unless_one_was_asked_for(
    checkpoint, store, monkeypatch
):
    def refusing(*what):
        raise PermissionError(13, "Permission denied", str(store))

    monkeypatch.setattr(process, "start_detached", refusing)
    monkeypatch.setattr(Estimate, "repaid", lambda self, seconds: True)
    done = asked(checkpoint)
    assert done.exit_code == 0 and "warning: the output is finished, but no engine is built" in done.output
    asked_for = asked(checkpoint, "--build-engine")
    assert asked_for.exit_code == 2 and "Permission denied" in asked_for.output


def asked(checkpoint, *more):
    words = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", "null", *more]
    return CliRunner().invoke(main, words)


def test_the_command_begins_it_last_and_not_where_the_model_itself_was_asked_for(
    checkpoint, starts, monkeypatch
):
    monkeypatch.setattr(process, "start_detached", lambda *what: starts.append(what) or 1)
    monkeypatch.setattr(Estimate, "repaid", lambda self, seconds: True)
    assert asked(checkpoint, "--dry-run").exit_code == asked(checkpoint, "--engine", "eager").exit_code == 0
    assert asked(checkpoint, "--no-build-engine").exit_code == 0 and starts == []
    done = asked(checkpoint)
    assert done.exit_code == 0, done.output
    assert "in the background" in done.output.splitlines()[-2] and len(starts) == 1


def test_a_video_that_is_repeated_has_none_built(checkpoint, starts, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "start_detached", lambda *what: starts.append(what) or 1)
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert asked(checkpoint, "-o", str(first)).exit_code == 0
    monkeypatch.setattr(Estimate, "repaid", lambda self, seconds: True)
    done = CliRunner().invoke(main, ["--repeat", f"{first}.json", "-o", str(again)])
    assert done.exit_code == 0, done.output
    assert first.read_bytes() == again.read_bytes() and starts == []


@pytest.mark.parametrize("several", ["--videos", "--grid"])
def test_videos_made_at_once_count_together(checkpoint, starts, several, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "start_detached", lambda *what: starts.append(what) or 1)
    videos, usual = [], after.after_video
    monkeypatch.setattr(
        after, "after_video", lambda video, *rest: videos.append(video) or usual(video, *rest)
    )
    (tmp_path / "two.yaml").write_text("a: a red star\nb: a blue ring\n")
    what = {
        "--videos": ["--videos", str(tmp_path / "two.yaml")],
        "--grid": ["--grid", "1x2", "--prompt", "x"],
    }
    words = [*what[several], "--checkpoint", str(checkpoint), "--chunks", "2"]

    def ran(output, *more):
        done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / output), *more])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    ran("one")
    assert starts == [] and "in the background" in ran("two", "--build-engine")[-2]
    monkeypatch.setattr(Estimate, "repaid", lambda self, seconds: seconds > 0)
    ran("three", "--no-build-engine")
    ran("four", "--engine", "eager")
    assert len(starts) == 1 and "in the background" in ran("five")[-2] and len(starts) == 2
    assert [video.spent.chunks for video in videos] == [2 * 2] * 4
    assert all(video.complete and video.seconds == 4 * 12 / 16 for video in videos)


def test_of_videos_that_were_stopped_or_failed_none_has_one_built(checkpoint, starts, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "start_detached", lambda *what: starts.append(what) or 1)
    monkeypatch.setattr(Estimate, "repaid", lambda self, seconds: True)
    usual, videos = Mp4Sink.write, tmp_path / "two.yaml"
    videos.write_text("a: a red star\nb: a blue ring\n")

    def failing(sink, frames):
        if sink.path.name == "b.mp4":
            raise OSError(28, "No space left on device")
        usual(sink, frames)

    monkeypatch.setattr(Mp4Sink, "write", failing)
    words = ["--videos", str(videos), "--checkpoint", str(checkpoint), "--chunks", "1", "--build-engine"]
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and "1 of 2 videos failed" in done.output.splitlines()[-1]
    assert "no engine is built after a run that was stopped or failed" in done.output and starts == []


@pytest.mark.parametrize("other", [("--engine", "eager"), ("--ray",), ("--sequence-parallel",)])
def test_the_option_goes_with_new_videos_alone(checkpoint, other, tmp_path):
    refused = CliRunner().invoke(main, ["--videos", "x.yaml", "--build-engine", *other])
    assert refused.exit_code == 2
    said = f"--build-engine goes with new videos on this machine; leave out {other[0]}"
    assert said in refused.output.splitlines()[-1]
