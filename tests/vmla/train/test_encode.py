"""Videos and captions become shards once; what cannot be used is named."""

import json
import os

import pytest
import torch
from click.testing import CliRunner
from kit.files.videos import write_video
from kit.measure import assert_close
from kit.refusals import said

from plugins.errors import UserError
from vmla.train.cli.commands import main
from vmla.train.data.clips import open_clips
from vmla.train.data.video_files import Unusable, captioned, fitted, read_video
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

FRAMES = 3
"""Latent frames of a clip: twelve pixel frames of the tiny codec."""


@pytest.fixture
def videos(tmp_path):
    """Five videos: one without a caption, one that is none, one too short."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a", "b", "more/c", "silent")):
        write_video(folder / f"{name}.mp4", seed=i)
        if name != "silent":
            (folder / f"{name}.txt").write_text(f"a red star\n number {i}")
    write_video(folder / "short.mp4", frames=5)
    (folder / "broken.mp4").write_bytes(b"no video")
    for name in ("short", "broken"):
        (folder / f"{name}.txt").write_text("a blue ring")
    return folder


def encode(source, folder, checkpoint, *more):
    arguments = [source, "-o", folder, "--with", checkpoint, "--frames", FRAMES, "--shard", 2, *more]
    return CliRunner().invoke(main, ["encode", *(str(word) for word in arguments)])


def test_clips_are_encoded_once_and_what_is_bad_is_named(videos, checkpoint, tmp_path):
    folder = tmp_path / "data"
    result = encode(videos, folder, checkpoint, "--negative", "blurred")
    assert result.exit_code == 0, result.output
    for name, reason in (
        ("silent.mp4", "has no caption"),
        ("short.mp4", "has 5 frames at 16 a second, 12 are needed"),
        ("broken.mp4", "cannot be decoded"),
    ):
        assert f"skipped {name}: it {reason}" in result.output
    index = json.loads((folder / "clips.json").read_text())
    assert set(index["skipped"]) == {"silent.mp4", "short.mp4", "broken.mp4"}
    opened = open_checkpoint(checkpoint)
    clips = open_clips(folder, opened.model_config())
    names = [name for shard in index["shards"] for name in shard["names"]]
    assert names == ["a.mp4", "b.mp4", "more/c.mp4"]
    assert clips.latents.shape == (3, 4, FRAMES, 8, 8)
    video = read_video(videos / "b.mp4", frames=12, height=64, width=64)
    expected = opened.codec().encode(video[None]).half(), opened.text()(["a red star number 1"]).half()
    assert torch.equal(clips.latents[torch.tensor([1])], expected[0])
    assert torch.equal(clips.text[torch.tensor([1])], expected[1])
    assert torch.equal(clips.negative, opened.text()(["blurred"])[0].half())


def test_what_is_encoded_is_left_as_it_is(videos, checkpoint, tmp_path):
    folder = tmp_path / "data"
    encode(videos, folder, checkpoint)
    shards = sorted(folder.glob("clips-*.safetensors"))
    before = json.loads((folder / "clips.json").read_text())
    assert len(shards) == 3
    shards[-1].unlink()
    (folder / "clips.json").unlink()
    stamp = shards[0].stat().st_mtime_ns
    assert encode(videos, folder, checkpoint).exit_code == 0
    assert shards[0].stat().st_mtime_ns == stamp
    assert json.loads((folder / "clips.json").read_text()) == before
    assert all(path.exists() for path in shards)


def test_a_truncated_shard_is_refused(videos, checkpoint, tmp_path):
    folder = tmp_path / "data"
    encode(videos, folder, checkpoint)
    shard = sorted(folder.glob("clips-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged"):
        open_clips(folder, open_checkpoint(checkpoint).model_config())
    result = encode(videos, folder, checkpoint)
    assert result.exit_code == 2
    assert f"{shard} is damaged" in result.output


def test_prompts_need_no_video(checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\n\n  a blue   ring \n")
    assert encode(tmp_path / "prompts.txt", tmp_path / "data", checkpoint).exit_code == 0
    opened = open_checkpoint(checkpoint)
    clips = open_clips(tmp_path / "data", opened.model_config(), video=False)
    expected = opened.text()(["a red star", "a blue ring"]).half()
    assert torch.equal(clips.text[torch.arange(2)], expected)
    with pytest.raises(UserError, match="holds prompts alone; this stage needs clips of video"):
        open_clips(tmp_path / "data", opened.model_config())


def test_another_encoding_does_not_go_on(videos, checkpoint, tmp_path):
    encode(videos, tmp_path / "data", checkpoint)
    result = encode(videos, tmp_path / "data", checkpoint, "--frames", 2)
    assert result.exit_code == 2
    assert "made with frames = 3, this recipe has 2" in result.output
    assert len(said(result)) == 1


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (lambda folder: None, "no "),
        (lambda folder: folder.mkdir(), "holds no videos"),
        (lambda folder: (folder.mkdir(), (folder / "x.txt").write_text("hi")), "a caption without a video"),
        (lambda folder: folder.write_text("\n\n"), "holds no prompts"),
        (lambda folder: folder.write_bytes(b"\xff\xfe"), "is not UTF-8 text"),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "x.mp4").touch(),
                (folder / "x.txt").write_bytes(b"\xff"),
            ),
            "x.txt is not UTF-8 text",
        ),
    ],
)
def test_a_source_with_nothing_to_encode_is_refused(checkpoint, tmp_path, prepare, complaint):
    prepare(tmp_path / "source")
    result = encode(tmp_path / "source", tmp_path / "data", checkpoint)
    assert result.exit_code == 2
    assert complaint in result.output
    assert len(said(result)) == 1


def test_a_source_of_which_nothing_can_be_encoded_is_an_error(checkpoint, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x.txt").write_text("a red star")
    os.mkfifo(tmp_path / "source" / "x.mp4")
    result = encode(tmp_path / "source", tmp_path / "data", checkpoint)
    assert result.exit_code == 2
    assert "could be encoded; x.mp4 cannot be decoded" in result.output.splitlines()[-1]


# Pictures


@pytest.mark.parametrize("rate", [8, 16, 32])
def test_frames_are_those_of_their_time(tmp_path, rate):
    write_video(tmp_path / "x.mp4", frames=24, rate=rate)
    video = read_video(tmp_path / "x.mp4", frames=10, height=64, width=64)
    shown = [int(i / 16 * rate) for i in range(10)]
    assert_close(video.mean((1, 2, 3)) * 255, 10.0 * torch.tensor(shown), rtol=0, atol=3.0)


def test_pictures_cover_the_size_and_are_cut_about_their_centre():
    image = torch.zeros(40, 100, 3, dtype=torch.uint8)
    image[:, 40:60] = 200
    out = fitted(image, 20, 20)
    assert out.shape == (3, 20, 20)
    assert_close(out[:, :, 6:14], torch.full((3, 20, 8), 200 / 255), rtol=0, atol=0.02)
    assert out[:, :, :4].max() == 0


def test_a_file_that_is_no_video_is_unusable(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(Unusable, match="cannot be decoded"):
        read_video(tmp_path / "x.mp4", frames=1, height=8, width=8)
    (tmp_path / "x.txt").write_text("a  caption\n of two lines")
    assert captioned(tmp_path) == [(tmp_path / "x.mp4", "a caption of two lines")]
