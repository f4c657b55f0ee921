"""Videos that go on from pictures: a clip, an image, the end of another video."""

import json
import os

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.files.videos import write_picture, write_video
from kit.refusals import assert_one_line
from kit.tiny.engines import tiny_engine

from plugins.errors import UserError
from runtime import VideoPipeline
from runtime.cli.run import main
from runtime.engines.base import EagerEngine
from runtime.outputs.writer import to_pixels
from runtime.planning.start import open_start
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import Rollout
from runtime.session.replay import resume
from vmla.scheduler import Sampler
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
SAMPLER = Sampler(kind="renoise", steps=2)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def latents_of(engine, chunks, *, start=(), prompt=RED):
    """Of each chunk."""
    rollout = Rollout(engine, FixedPrompts(prompt), SAMPLER, seeds=[3], start=start)
    made = []
    for _ in range(chunks):
        made.append(rollout.denoise())
        rollout.update_cache()
    return made


@pytest.fixture(scope="module")
def own(checkpoint, tmp_path_factory):
    """A video made here, as pictures and enlarged in a file."""
    folder = tmp_path_factory.mktemp("own")
    for name, scale in (("pictures", 1), ("video.mp4", 4)):
        asked = ("--prompt", RED, "--checkpoint", checkpoint, "--chunks", 3, "--scale", scale)
        result = run(*asked, "-o", folder / name)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("sizes", [{"history": 6}, {"first_chunk": 1}])
def test_it_goes_on_as_the_rollout_that_made_the_chunks_itself(sizes):
    engine = tiny_engine(**sizes)
    whole = latents_of(engine, 6)
    for given in (1, 2):
        again = latents_of(engine, 6, start=whole[:given])
        assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    other = latents_of(engine, 6, start=[torch.zeros_like(whole[0])])
    assert not other[0].any()
    assert not torch.equal(other[1], whole[1])


def test_a_video_begins_with_the_encoded_pictures_and_goes_on_from_them(pipeline, checkpoint, tmp_path):
    pixels = torch.from_numpy(write_picture(tmp_path / "still.png"))
    opened = open_checkpoint(checkpoint)
    codec = opened.codec()
    video = (pixels.permute(2, 0, 1).float() / 255).expand(1, 12, -1, -1, -1)
    engine = EagerEngine(opened.transformer(), opened.text(), device=CPU, dtype=torch.float32)
    rollout = Rollout(engine, FixedPrompts(BLUE), opened.sampler(), seeds=[3], start=[codec.encode(video)])
    decoder, frames = CodecDecoder(codec, CPU), []
    for _ in range(3):
        frames.append(to_pixels(decoder.decode(rollout.denoise())[0]))
        rollout.update_cache()
    made = list(pipeline(BLUE, seconds=36 / 16, seed=3, start=tmp_path / "still.png"))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(frames, made, strict=True))


def test_a_clip_gives_its_end_and_one_that_is_enlarged_is_made_small_again(own, checkpoint):
    opened = open_checkpoint(checkpoint)
    pictures, video = (open_start(own / name, opened) for name in ("pictures", "video.mp4"))
    assert pictures.chunks == video.chunks == 1  # a window of four latent frames
    exact, blurred = (start.encode(opened, CPU)[0] for start in (pictures, video))
    shown = [av.open(str(path)) for path in sorted((own / "pictures").glob("*.png"))[-12:]]
    frames = np.stack([next(file.decode(video=0)).to_ndarray(format="rgb24") for file in shown])
    wanted = opened.codec().encode(torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255)
    assert torch.allclose(exact, wanted, atol=1e-6)
    assert blurred.shape == exact.shape
    assert (blurred - exact).abs().mean() < 0.5 * exact.abs().mean()  # but for what H.264 loses


def test_a_file_says_what_it_started_from_and_is_repeated(own, checkpoint, tmp_path):
    asked = ("--prompt", BLUE, "--checkpoint", checkpoint, "--chunks", 4, "--start", own / "video.mp4")
    result = run(*asked, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 0, result.output
    assert "start:" in result.output
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["start_file"] == str(own / "video.mp4")
    assert told["start_chunks"] == 1
    assert run("--repeat", tmp_path / "a.mp4.json", "-o", tmp_path / "b.mp4").exit_code == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    other = ("--start", own / "pictures", "-o", tmp_path / "c.mp4")
    assert_one_line(run("--repeat", tmp_path / "a.mp4.json", *other), "another start_hash")
    old = {name: value for name, value in told.items() if not name.startswith("start_")}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert run("--repeat", tmp_path / "old.json", "-o", tmp_path / "old.mp4").exit_code == 0
    told["start_hash"] = "0" * 64
    (tmp_path / "gone.json").write_text(json.dumps(told))
    gone = run("--repeat", tmp_path / "gone.json", "-o", tmp_path / "gone.mp4")
    assert_one_line(gone, "video.mp4", "not what the video was started from")


@pytest.mark.parametrize("taken", [0, 2])
def test_it_goes_on_after_a_stop(pipeline, tmp_path, taken):
    write_picture(tmp_path / "still.png")
    whole = np.concatenate(list(pipeline(BLUE, seconds=6, start=tmp_path / "still.png")))
    video = pipeline(BLUE, seconds=6, start=tmp_path / "still.png")
    first = [next(video) for _ in range(taken)]
    state = video.snapshot()
    assert np.array_equal(np.concatenate([*first, *pipeline.restore(state)]), whole)


def test_a_file_that_was_stopped_needs_its_start_no_more(pipeline, own, tmp_path):
    output, still = tmp_path / "a.mp4", tmp_path / "still.png"
    write_picture(still)
    assert pipeline.save(BLUE, tmp_path / "whole.mp4", seconds=6, start=still, save_every=None).complete
    with VideoPipeline(pipeline._job) as stopped:
        video = stopped.save
        telemetry = Stopping(stopped)
        outcome = video(BLUE, output, seconds=6, start=still, save_every=0.0, telemetry=telemetry)
    assert not outcome.complete
    still.unlink()
    assert resume(output, {}).job.start.chunks == 1
    assert run("--resume", output).exit_code == 0
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


class Stopping:
    """Ends all videos of a pipeline after the fourth chunk."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    def chunk(self, report):
        if report.chunk == 3:
            self._pipeline._session.close()

    def prompt(self, *_):
        pass


def test_what_does_not_fit_is_refused_in_a_line_and_leaves_nothing(checkpoint, own, tmp_path):
    write_video(tmp_path / "wide.mp4", width=96)
    write_video(tmp_path / "fast.mp4", rate=24)
    write_video(tmp_path / "short.mp4", frames=11)
    write_video(tmp_path / "long.mp4", frames=40)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile long.mp4\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "000000.png")
    output = tmp_path / "a.mp4"
    asked = ("--prompt", RED, "--checkpoint", checkpoint, "-o", output)
    for name, *said in (
        ("wide.mp4", "96 x 64", "64 x 64"), ("fast.mp4", "24 frames a second"), ("short.mp4", "11 frames"),
        ("text.mp4", "cannot read"), ("empty", "no .png"), ("nothing.mp4", "nothing.mp4"),
        ("pipe.mp4", "is not a regular file"), ("list.mp4", "cannot read"),
        ("folder", "is not a regular file"),
    ):  # fmt: skip
        assert_one_line(run(*asked, "--chunks", 4, "--start", tmp_path / name), name, *said)
    assert_one_line(run(*asked, "--chunks", 1, "--start", tmp_path / "long.mp4"), "make it longer")
    assert not output.exists()
    itself = own / "video.mp4"
    made = itself.read_bytes()
    again = run(*asked[:4], "--chunks", 4, "--start", itself, "-o", itself, "--overwrite")
    assert_one_line(again, "is what the video continues; choose another name")
    assert itself.read_bytes() == made
    with pytest.raises(UserError, match="cannot read"):
        open_start(tmp_path / "text.mp4", open_checkpoint(checkpoint))
