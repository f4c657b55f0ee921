"""A loaded model in Python: chunks to iterate over, files, several at once, live prompts, going on."""

import gc
import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

import runtime
from plugins.errors import UserError
from runtime import LivePrompts, State, VideoPipeline, generate
from runtime.cli.run import main
from runtime.resume.state import load_state, state_path
from runtime.rollout.decoding import CodecDecoder
from runtime.telemetry.events import NoTelemetry

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
ENOUGH = 120
OURS = ("video-pipeline", "decoder", "frame-writer", "autosave", "video-end")
"""Threads that a pipeline starts."""


@pytest.fixture(scope="module")
def whole(pipeline):
    return np.concatenate(list(pipeline(RED, seconds=5, seed=3)))


def threads_of_ours(before):
    return [t for t in threading.enumerate() if t.name in OURS and t not in before]


def assert_no_threads_are_left(before):
    end = time.monotonic() + ENOUGH
    while threads_of_ours(before):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_video_comes_chunk_by_chunk_and_is_cut_to_its_length(pipeline):
    chunks = list(pipeline(RED, seconds=2, seed=3))
    assert [chunk.shape for chunk in chunks] == [(12, 64, 64, 3)] * 2 + [(8, 64, 64, 3)]
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.uint8)}


def test_the_short_form_gives_the_same_frames_one_by_one(checkpoint, whole):
    frames = list(generate(RED, seconds=5, seed=3, checkpoint=checkpoint))
    assert np.array_equal(np.stack(frames), whole)


def test_a_generator_that_is_closed_early_leaves_no_threads(checkpoint):
    before = threading.enumerate()
    for close in (lambda generator: generator.close(), lambda generator: None):
        generator = generate(RED, seconds=600, checkpoint=checkpoint)
        assert next(generator).shape == (64, 64, 3)
        assert threads_of_ours(before)
        close(generator)
        del generator
        assert_no_threads_are_left(before)


def test_a_video_that_nobody_holds_is_cancelled(pipeline):
    gc.collect()
    before = threading.enumerate()
    for _ in pipeline(RED, seconds=None):
        break
    assert_no_threads_are_left(before)
    with pipeline(RED, seconds=None) as video:
        assert len(next(video)) == 12
    assert list(video) == []
    assert_no_threads_are_left(before)


def test_a_file_is_the_one_that_the_command_makes(pipeline, checkpoint, tmp_path):
    asked = ("--prompt", RED, "--checkpoint", checkpoint, "--seconds", 2, "--seed", 3)
    result = CliRunner().invoke(main, [str(a) for a in (*asked, "-o", tmp_path / "command.mp4")])
    assert result.exit_code == 0, result.output
    outcome = pipeline.save(RED, tmp_path / "python.mp4", seconds=2, seed=3)
    assert (outcome.complete, outcome.frames) == (True, 32)
    assert (tmp_path / "python.mp4").read_bytes() == (tmp_path / "command.mp4").read_bytes()
    names = {"command.mp4", "command.mp4.json", "python.mp4", "python.mp4.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    one, other = (json.loads((tmp_path / f"{name}.mp4.json").read_text()) for name in ("command", "python"))
    differing = {name for name in one if one[name] != other[name]}
    assert differing <= {
        "engine_reason", "load_seconds", "seconds", "state_seconds", "peak_bytes", "timing"
    }  # fmt: skip
    with pytest.raises(UserError, match="exists already"):
        pipeline.save(BLUE, tmp_path / "python.mp4")


def test_files_frames_and_pauses_at_the_same_time(pipeline, whole, tmp_path):
    done = []
    saving = threading.Thread(
        target=lambda: done.append(pipeline.save(RED, tmp_path / "a.mp4", seconds=5, seed=3))
    )
    video = pipeline(RED, seconds=5, seed=3)
    saving.start()
    first = next(video)
    video.pause()
    saving.join(ENOUGH)
    video.resume()
    assert done[0].complete
    assert np.array_equal(np.concatenate([first, *video]), whole)


def test_many_are_made_at_once_and_taken_in_any_order(pipeline, whole):
    videos = pipeline.many([RED, BLUE, RED], seconds=5, seeds=[3, 4, 3])
    assert np.array_equal(np.concatenate(list(videos[2])), whole)  # the others wait, full
    for one, other in itertools.zip_longest(videos[0], videos[1]):
        assert one.shape == other.shape
    with pytest.raises(UserError, match="2 prompts but 1 seeds"):
        pipeline.many([RED, BLUE], seeds=[1])
    with pytest.raises(UserError, match="the prompt is empty"):
        pipeline.many([RED, " "])


def test_prompts_over_time_and_live_ones(pipeline):
    scheduled = np.concatenate(list(pipeline({0: RED, 1.5: BLUE}, seconds=3)))
    plain = np.concatenate(list(pipeline(RED, seconds=3)))
    assert np.array_equal(scheduled[:24], plain[:24])
    assert not np.array_equal(scheduled[24:], plain[24:])
    live = LivePrompts(RED)
    with pipeline(live, seconds=None) as video:
        frames = [next(video)]
        receipt = video.prompts.change(BLUE)
        while receipt.chunk is None:
            frames.append(next(video))
        assert receipt.wait(ENOUGH) == live.changes[1].chunk > 0


def test_other_steps_are_other_frames_of_the_same_model(pipeline, checkpoint, whole):
    made = np.concatenate(list(pipeline(RED, seconds=1, seed=3, steps=3)))
    alone = np.stack(list(generate(RED, seconds=1, seed=3, steps=3, checkpoint=checkpoint)))
    assert np.array_equal(made, alone)
    assert not np.array_equal(made, whole[:16])


@pytest.mark.parametrize("taken", [0, 1, 4, 7])
def test_a_snapshot_goes_on_with_the_next_frame_that_was_not_taken(pipeline, whole, tmp_path, taken):
    video = pipeline(RED, seconds=5, seed=3)
    first = [next(video) for _ in range(taken)]
    time.sleep(0.2)  # let it work ahead, to its end perhaps
    state = video.snapshot()
    assert state.mark["frames"] == 12 * taken + sum(map(len, state.pending)) or taken == 7
    state.save(tmp_path / "state")
    rest = [list(pipeline.restore(one)) for one in (state, State.load(tmp_path / "state"))]
    assert np.array_equal(np.concatenate([*first, *video]), whole)
    for frames in rest:
        assert np.array_equal(np.concatenate([*first, *frames]), whole)


def test_a_decoder_that_fails_is_named_where_frames_are_taken(pipeline, monkeypatch):
    def decode(*_):
        raise RuntimeError("out of memory\nand more about it")

    with monkeypatch.context() as patch:
        patch.setattr(CodecDecoder, "decode", decode)
        with pytest.raises(UserError, match="decoding chunk 0 failed: out of memory; 0 frames were kept"):
            next(pipeline(RED, seconds=1))
    assert len(list(pipeline(RED, seconds=1))) == 2


def test_a_closed_pipeline_ends_its_videos_and_makes_no_more(checkpoint):
    before = threading.enumerate()
    pipeline = VideoPipeline.from_pretrained(checkpoint, device="cpu")
    video, paused = pipeline(RED, seconds=None), pipeline(RED, seconds=None)
    next(video)
    paused.pause()
    pipeline.close()
    assert list(video) == []
    assert video.status == paused.status == "ended"
    with pytest.raises(UserError, match="the session is closed"):
        pipeline(RED)
    assert_no_threads_are_left(before)


def test_nonsense_is_refused_when_it_is_said(pipeline, checkpoint):
    for refused in (
        lambda: pipeline("  "),
        lambda: pipeline(RED, seconds=-1),
        lambda: pipeline(RED, steps=0),
        lambda: pipeline.save(RED, "no/such/folder/a.mp4"),
        lambda: VideoPipeline.from_pretrained("nowhere"),
        lambda: VideoPipeline.from_pretrained(checkpoint, device="teapot"),
    ):
        with pytest.raises(UserError):
            refused()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": 1.5}, "the seed is 1.5; use a whole number"),
        ({"steps": 1.5}, "1.5 denoising steps"),
        ({"steps": True}, "True denoising steps"),
        ({"scale": -1}, "scale is -1; use a whole number from 1 to 16"),
        ({"scale": 99999}, "scale is 99999"),
        ({"save_every": float("nan")}, "save_every is nan"),
        ({"prompt": None}, "NoneType is not a kind of prompt"),
        ({"prompt": b"a red star"}, "bytes is not a kind of prompt"),
        ({"prompt": {0: None}}, "0: None is not a prompt of a schedule"),
        ({"prompt": {"soon": RED}}, "not a prompt of a schedule; give texts by their seconds"),
    ],
    ids=str,
)
def test_values_of_another_kind_are_refused_before_anything_is_written(pipeline, tmp_path, asked, said):
    with pytest.raises(UserError, match=said):
        pipeline.save(**{"prompt": RED, "path": tmp_path / "a.mp4", "seconds": 1, **asked})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [{"dtype": "int8"}, {"threads": -3}, {"threads": "2"}], ids=str)
def test_a_model_is_not_loaded_as_what_there_is_not(checkpoint, asked):
    with pytest.raises(UserError):
        VideoPipeline.from_pretrained(checkpoint, **asked)


def test_importing_it_is_lean_and_its_names_can_be_seen():
    names = ["GeneratedVideo", "LivePrompts", "State", "VideoPipeline", "generate"]
    assert dir(runtime) == names == sorted(runtime.__all__)
    assert all(getattr(runtime, name) for name in names)
    code = "import runtime, sys; dir(runtime); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Interrupt(NoTelemetry):
    """Presses Ctrl-C after the second chunk."""

    def chunk(self, report):
        if report.chunk == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_file_is_gone_on_with_by_the_command(pipeline, tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        pipeline.save(RED, tmp_path / "a.mp4", seconds=24, seed=3, telemetry=Interrupt())
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["complete"] is False
    assert 0 < told["frames_written"] < 384
    state, _ = load_state(state_path(tmp_path / "a.mp4"), mend="")
    assert state.mark["frames"] == told["frames_written"]
    result = CliRunner().invoke(main, ["--resume", str(tmp_path / "a.mp4")])
    assert result.exit_code == 0, result.output
    assert pipeline.save(RED, tmp_path / "b.mp4", seconds=24, seed=3, save_every=None).complete
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
