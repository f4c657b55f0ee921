"""What is not ours is never removed, and an older video stays until the new one has frames."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from threading import Event

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line
from safetensors.torch import load_file

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.outputs.mp4 import Mp4Sink
from runtime.outputs.png import PngSink
from runtime.pipeline import VideoPipeline
from runtime.resume.sidecar import sidecar_path, write_begun
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import Rollout
from runtime.session import session
from runtime.session.destination import check_output
from vmla.weights.formats.files import write_tensors

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder to work in that lies in another one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def make(checkpoint, output, *more):
    asked = ("--prompt", PROMPT, "--checkpoint", checkpoint, "--chunks", 1, "--scale", 1, "-o", output, *more)
    return CliRunner().invoke(main, [str(each) for each in asked])


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def strange_folder(folder):
    (folder / "photos").mkdir()
    (folder / "photos" / "IMG_0001.jpg").write_bytes(b"mine")
    return "photos"


def numbered_pictures(folder):
    (folder / "scan").mkdir()
    (folder / "scan" / "000000.png").write_bytes(b"mine")
    return "scan"


def a_file(folder):
    (folder / "holiday.mp4").write_bytes(b"mine")
    return "holiday.mp4"


def a_sidecar(folder):
    (folder / "new.mp4.json").write_text(json.dumps({"mine": True}))
    return "new.mp4"


def a_link(folder):
    (folder / "elsewhere.mp4").write_bytes(b"mine")
    (folder / "link.mp4").symlink_to("elsewhere.mp4")
    return "link.mp4"


def a_pipe(folder):
    os.mkfifo(folder / "pipe.mp4")
    return "pipe.mp4"


@pytest.mark.parametrize("lay", [strange_folder, numbered_pictures, a_file, a_sidecar, a_link, a_pipe])
def test_what_is_not_ours_is_refused_and_stays(checkpoint, inside, lay):
    output = lay(inside)
    before = contents(inside)
    assert_one_line(make(checkpoint, output, "--overwrite"), output)
    assert contents(inside) == before


@pytest.mark.parametrize("output", [".", "..", "/", "../work", ""])
def test_a_folder_that_one_works_in_is_refused(checkpoint, inside, output):
    (inside / "mine").write_text("mine")
    assert_one_line(make(checkpoint, output, "--overwrite"), "is a folder that you work in")
    assert (inside / "mine").exists()


@pytest.mark.parametrize("output", ["a.mp4", "pictures"])
def test_a_video_of_ours_is_replaced(checkpoint, inside, output):
    assert make(checkpoint, output, "--chunks", 2).exit_code == 0
    before = contents(inside)
    result = make(checkpoint, output, "--overwrite")
    assert result.exit_code == 0, result.output
    told = json.loads((inside / f"{output}.json").read_text())
    assert told["frames_written"] == told["frames"] == 12
    assert len(contents(inside)) == len(before) - (12 if output == "pictures" else 0)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("output", "sink", "method"), [("a.mp4", Mp4Sink, "_appear"), ("a", PngSink, "write")]
)
def test_the_first_bytes_are_known_as_ours_while_weights_are_hashed(
    checkpoint, inside, monkeypatch, output, sink, method, older
):
    """A process that is killed then leaves what `--overwrite` may replace."""
    if older:
        assert make(checkpoint, output).exit_code == 0
    usual, describe, seen = getattr(sink, method), session.describe_model, Event()

    def write(self, *arguments):
        usual(self, *arguments)
        check_output(self.path, overwrite=True)
        assert json.loads(sidecar_path(self.path).read_text())["weights"] == {}
        seen.set()

    monkeypatch.setattr(sink, method, write)
    monkeypatch.setattr(session, "describe_model", lambda job: (seen.wait(20), describe(job))[1])
    result = make(checkpoint, output, "--overwrite")
    assert result.exit_code == 0, result.output
    assert seen.is_set()
    assert json.loads(sidecar_path(Path(output)).read_text())["complete"]


def test_a_video_that_was_killed_at_its_first_bytes_is_made_anew(checkpoint, inside):
    Path("a.mp4").write_bytes(b"its first bytes")
    write_begun(Path("a.mp4"), {"prompts": [], "seed": 0, "sampler": {}})
    resumed = CliRunner().invoke(main, ["--resume", "a.mp4"])
    assert_one_line(resumed, "nothing to resume; make it again with --overwrite")
    made = make(checkpoint, "a.mp4", "--overwrite")
    assert made.exit_code == 0, made.output


def test_a_folder_of_ours_with_something_else_in_it_is_refused(checkpoint, inside):
    assert make(checkpoint, "pictures").exit_code == 0
    (inside / "pictures" / "notes.txt").write_text("mine")
    assert_one_line(make(checkpoint, "pictures", "--overwrite"), "pictures/notes.txt")
    assert (inside / "pictures" / "000000.png").exists()


@pytest.mark.parametrize("output", ["a.mp4", "pictures"])
def test_a_run_that_fails_before_its_first_frames_leaves_the_older_video(
    checkpoint, inside, output, monkeypatch
):
    assert make(checkpoint, output).exit_code == 0
    before = contents(inside)

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(CodecDecoder, "decode", fail)
    result = make(checkpoint, output, "--overwrite")
    assert result.exit_code != 0
    assert contents(inside) == before


@pytest.mark.parametrize(
    ("output", "sink", "method"), [("a.mp4", Mp4Sink, "_append"), ("pictures", PngSink, "_picture")]
)
def test_a_disk_that_is_full_at_the_first_frames_leaves_the_older_video(
    checkpoint, inside, output, sink, method, monkeypatch
):
    assert make(checkpoint, output).exit_code == 0
    before, usual, calls = contents(inside), getattr(sink, method), []

    def fill(*arguments):
        calls.append(method)
        if method == "_append" or len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(*arguments)

    monkeypatch.setattr(sink, method, fill)
    result = make(checkpoint, output, "--overwrite")
    assert result.exit_code == 2
    assert "No space left on device; 0 frames were kept" in result.output.splitlines()[-1]
    assert contents(inside) == before


def test_a_video_behind_a_link_is_gone_on_with_in_its_own_place(checkpoint, inside, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    assert make(checkpoint, "whole.mp4", "--chunks", 3).exit_code == 0
    with monkeypatch.context() as patch:
        usual, calls = CodecDecoder.decode, []
        patch.setattr(
            CodecDecoder, "decode", lambda *a: calls.append(a) or (fail if calls[2:] else usual)(*a)
        )
        assert make(checkpoint, "a.mp4", "--chunks", 3, "--save-every", 0).exit_code == 2
    (inside / "elsewhere").mkdir()
    (inside / "a.mp4").rename(inside / "elsewhere" / "b.mp4")
    (inside / "a.mp4").symlink_to("elsewhere/b.mp4")
    assert CliRunner().invoke(main, ["--resume", "a.mp4"]).exit_code == 0
    assert (inside / "a.mp4").is_symlink()
    assert (inside / "elsewhere" / "b.mp4").read_bytes() == (inside / "whole.mp4").read_bytes()


def test_a_pipeline_refuses_and_replaces_alike(checkpoint, inside):
    with VideoPipeline.from_pretrained(checkpoint) as pipeline:
        pipeline.save(PROMPT, "a.mp4", seconds=0.75)
        first = (inside / "a.mp4").read_bytes()
        pipeline.save(PROMPT, "a.mp4", seconds=0.75, seed=1, overwrite=True)
        assert (inside / "a.mp4").read_bytes() != first
        shutil.copy("a.mp4", "copy.mp4")  # nothing beside it says whose it is
        with pytest.raises(UserError, match=r"copy\.mp4 is not of a video made here"):
            pipeline.save(PROMPT, "copy.mp4", seconds=0.75, overwrite=True)
    assert Path("copy.mp4").exists()


def test_a_suffix_in_capitals_is_one(checkpoint, inside):
    assert make(checkpoint, "A.MP4").exit_code == 0
    assert (inside / "A.MP4").is_file() and (inside / "A.MP4.json").is_file()


@pytest.mark.parametrize("option", ["--events", "--metrics"])
def test_a_report_never_goes_into_the_video(checkpoint, inside, option):
    assert_one_line(make(checkpoint, "a.mp4", option, inside / "a.mp4"), option, "give each its own file")
    assert contents(inside) == {}


def test_more_threads_than_a_machine_has_use_for_are_refused(checkpoint, inside):
    assert_one_line(make(checkpoint, "a.mp4", "--threads", 100_000), "100000 threads", "use at most")


def test_a_chunk_that_is_not_finite_ends_the_video_by_its_number(checkpoint, inside, monkeypatch):
    denoise, number = Rollout.denoise, [0]

    def broken(rollout):
        number[0] += 1
        return denoise(rollout) * (float("nan") if number[0] == 3 else 1.0)

    monkeypatch.setattr(Rollout, "denoise", broken)
    result = make(checkpoint, "a.mp4", "--chunks", 4)
    last = result.output.splitlines()[-1]
    assert result.exit_code == 2
    assert "decoding chunk 2 failed: it is not finite" in last and "24 frames were kept" in last


@pytest.mark.parametrize("together", [False, True], ids=["one video", "several"])
def test_a_video_that_cannot_begin_leaves_nothing(checkpoint, inside, monkeypatch, together):
    begun = []

    def fails(*arguments, **more):
        begun.append(arguments)
        if len(begun) > together:
            raise RuntimeError("no such token\nand more")
        return Rollout(*arguments, **more)

    monkeypatch.setattr(session, "Rollout", fails)
    (inside / "videos.yaml").write_text("a: a red star\nb: a blue star\n")
    what = ["--videos", "videos.yaml"] if together else ["--prompt", "a red star"]
    options = ["--checkpoint", str(checkpoint), "--chunks", "2", "-o", "out" if together else "a.mp4"]
    result = CliRunner().invoke(main, [*what, *options])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("cannot begin the video: RuntimeError: no such token")
    assert not [path for path in inside.rglob("*") if path.is_file() and path.name != "videos.yaml"]


def test_weights_that_are_not_finite_are_refused_by_name(checkpoint, inside):
    shutil.copytree(checkpoint, inside / "model")
    path = inside / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.weight"][0, 0] = float("inf")
    write_tensors(path, tensors, {})
    assert_one_line(make(inside / "model", "a.mp4"), "tensor proj_out.weight is not finite")
    assert not (inside / "a.mp4").exists()


def test_files_of_others_that_only_look_left_over_stay(checkpoint, inside):
    for name in "a.mp4.tmp", "a.mp4.json.tmp", "a.mp4.state.tmp":
        (inside / name).write_text("mine")
    assert make(checkpoint, "a.mp4").exit_code == 0
    assert {path.name for path in inside.iterdir() if path.read_bytes() == b"mine"} == {
        "a.mp4.tmp", "a.mp4.json.tmp", "a.mp4.state.tmp"
    }  # fmt: skip


def test_links_that_go_round_lead_nowhere(checkpoint, inside):
    (inside / "loop").symlink_to("loop")
    assert_one_line(make(checkpoint, "loop/a.mp4"), "there is no folder loop")
    assert_one_line(make(checkpoint, "null", "--events", "loop/e"), "there is no folder loop")


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_a_folder_where_nothing_was_stopped_has_nothing_to_go_on_with(inside, folder):
    refused = CliRunner().invoke(main, ["--resume", folder])
    assert_one_line(refused, f"no video in {folder} was stopped")


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="other names are no text here")
def test_what_no_sidecar_could_name_is_refused_before_a_video_begins(checkpoint, inside):
    odd = inside / os.fsdecode(b"caf\xe9")
    shutil.copytree(checkpoint, odd)
    assert_one_line(make(odd, "a.mp4"), "has a name that is not UTF-8")
    assert not (inside / "a.mp4").exists()
    assert make(checkpoint, odd / "a.mp4").exit_code == 0  # of its own place a sidecar says nothing
