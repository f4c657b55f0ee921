"""`vmla-run` as a person uses it: videos, plans, interruptions, and what it says to nonsense."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.tiny.checkpoints import as_trained_on
from safetensors.torch import load_file

from runtime import generate
from runtime.cli.run import main
from runtime.outputs.mp4 import Mp4Sink
from runtime.planning.compute import THREADS
from runtime.planning.request import prepare
from vmla.cache import CacheSpec
from vmla.cli.terminal import LONGEST
from vmla.config import named_config
from vmla.weights.formats.files import write_tensors

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def make(checkpoint, output, *more, prompt=PROMPT):
    return run("--prompt", prompt, "--checkpoint", checkpoint, "-o", output, *more)


def frames_of(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_a_video_of_the_length_asked_for(checkpoint, tmp_path):
    output = tmp_path / "star.mp4"
    result = make(checkpoint, output, "--seconds", 3, "--scale", 1, "--events", tmp_path / "events.jsonl")
    assert result.exit_code == 0, result.output
    video = frames_of(output)
    assert video.shape == (48, 64, 64, 3)
    made = np.stack(list(generate(PROMPT, seconds=3, checkpoint=checkpoint)))
    assert made.dtype == np.uint8
    assert made.shape == video.shape
    assert np.abs(video.astype(float) - made).mean() < 12  # random weights make noise, which H.264 blurs
    told = json.loads((tmp_path / "star.mp4.json").read_text())
    assert told["complete"] is True
    assert (told["prompt"], told["frames"], told["layout"], told["seed"]) == (PROMPT, 48, "mla", 0)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["chunk"] for event in events] == [0, 1, 2, 3]
    assert events[-1]["frames"] == 48


def test_a_seed_is_a_video(checkpoint):
    one, same, other = (
        np.stack(list(generate(PROMPT, seconds=1, seed=seed, checkpoint=checkpoint))) for seed in (4, 4, 5)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_pictures_and_nothing(checkpoint, tmp_path):
    assert make(checkpoint, tmp_path / "pictures", "--chunks", 1).exit_code == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 12
    result = make(checkpoint, "null", "--chunks", 1)
    assert result.exit_code == 0
    assert not Path("null").exists()
    assert not Path("null.json").exists()


def test_the_plan_is_the_truth(checkpoint):
    result = run("--prompt", PROMPT, "--checkpoint", checkpoint, "--minutes", 3, "--dry-run")
    assert result.exit_code == 0
    spec = CacheSpec.of(named_config("debug"))
    cache = spec.allocate(1, dtype=torch.float32)
    assert f"cache: {cache.nbytes:,} bytes" in result.output
    assert "240 chunks, 2880 frames of 64x64, 180 s" in result.output
    assert f"positions 0 to {spec.positions - 1}," in result.output


def test_an_existing_file_is_kept_unless_told_otherwise(checkpoint, tmp_path):
    output = tmp_path / "a.mp4"
    assert make(checkpoint, output, "--chunks", 2).exit_code == 0
    before = output.read_bytes()
    assert_one_line(make(checkpoint, output, "--chunks", 1), "exists already")
    assert output.read_bytes() == before
    assert make(checkpoint, output, "--chunks", 1, "--overwrite").exit_code == 0
    assert len(frames_of(output)) == 12


def assert_one_line(result, *fragments):
    assert result.exit_code not in (0, 1, 130), result.output
    beside = "Usage", "Try", "engine: ", "device: "
    lines = [line for line in result.output.splitlines() if line and not line.startswith(beside)]
    assert len(lines) == 1, result.output
    for fragment in fragments:
        assert fragment in lines[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--prompt", "  "], "the prompt is empty"),
        (["--seconds", "-3"], "-3"),
        (["--seconds", "nan"], "no video lasts"),
        (["--save-every", "nan"], "not a finite number"),
        (["--minutes", "1e9"], "at most"),
        (["--chunks", "0"], "chunks"),
        (["--chunks", "99999999"], "at most"),
        (["--seconds", "3", "--chunks", "2"], "more than one length"),
        (["--checkpoint", "nowhere"], "no checkpoint 'nowhere'"),
        (["--checkpoint", ""], "no checkpoint"),
        (["--layout", "mha"], "has layout mla"),
        (["--steps", "0"], "0 denoising steps"),
        (["--device", "cuda:7"], "no device 'cuda:7'"),
        (["--device", "teapot"], "no device 'teapot'"),
        (["--device", "meta"], "no device 'meta'"),
        (["--seed", f"1{39 * '0'}"], "38 digits at most"),
        (["-o", 300 * "a" + ".mp4"], "File name too long"),
        (["-o", "a.avi"], "cannot write .avi"),
        (["-o", "no/such/folder/a.mp4"], "there is no folder"),
    ],
    ids=str,
)
def test_nonsense_is_refused_in_one_line(checkpoint, tmp_path, arguments, fragment, monkeypatch):
    monkeypatch.chdir(tmp_path)
    standard = ["--prompt", PROMPT, "--checkpoint", checkpoint, "-o", "a.mp4"]
    assert_one_line(run(*standard, *arguments), fragment)
    assert list(tmp_path.iterdir()) == []


def with_tensors(checkpoint, folder, change):
    shutil.copytree(checkpoint, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    write_tensors(path, tensors, {})
    return folder


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda t: t.pop("proj_out.bias"), "lacks the tensor proj_out.bias"),
        (lambda t: t.update(extra=torch.ones(2)), "unknown tensor extra"),
        (lambda t: t.update({"proj_out.bias": torch.ones(3)}), "has shape [3]"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_wrong_checkpoint_is_refused(checkpoint, tmp_path, change, fragment):
    folder = with_tensors(checkpoint, tmp_path / "changed", change)
    output = tmp_path / "a.mp4"
    assert_one_line(make(folder, output, "--chunks", 1), fragment)
    assert not output.exists()
    assert not (tmp_path / "a.mp4.json").exists()


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "cut")
    path = tmp_path / "cut" / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_line(make(tmp_path / "cut", tmp_path / "a.mp4", "--chunks", 1), "is damaged")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full to write to")
def test_a_full_disk_is_named(checkpoint, tmp_path, monkeypatch):
    def full(sink, header):
        return Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the sink closes it

    monkeypatch.setattr(Mp4Sink, "_open", full)
    result = make(checkpoint, tmp_path / "full.mp4", "--chunks", 3)
    assert result.exit_code == 2
    assert "No space left" in result.output.splitlines()[-1]
    assert "Traceback" not in result.output


def test_a_prompt_of_another_world_is_warned_about(checkpoint, tmp_path):
    folder = as_trained_on("sprites", checkpoint, tmp_path / "sprites")
    known = make(folder, "null", "--chunks", 1)
    assert "warning" not in known.output
    odd = make(folder, "null", "--chunks", 1, prompt="a cat playing the piano")
    assert odd.exit_code == 0
    assert "does not know 'cat'" in odd.output


def test_a_plan_warns_of_all_that_the_run_warns_of(checkpoint, tmp_path):
    folder = as_trained_on("sprites", checkpoint, tmp_path / "sprites")
    asked = ("--prompt", "a cat playing the piano" * 9, "--checkpoint", folder, "--chunks", 1)
    plan, made = run(*asked, "--dry-run"), run(*asked, "-o", "null")
    assert (plan.exit_code, made.exit_code) == (0, 0)
    warnings = [[x for x in done.stderr.splitlines() if x.startswith("warning: ")] for done in (plan, made)]
    assert warnings[0] == warnings[1]
    assert "the prompt has 208 tokens, of which the model reads 96" in warnings[0][0]
    assert "does not know 'cat'" in warnings[0][1]
    (tmp_path / "videos.yaml").write_text("a: a dog\nb: a dog\nc: a bird\n")
    several = run("--videos", tmp_path / "videos.yaml", "--checkpoint", folder, "--dry-run")
    assert [line.count("does not know") for line in several.stderr.splitlines()] == [1, 1]


@pytest.mark.parametrize("odd", ["\x1b[2J", "\x07\r\x08", "\x9b31m", "\u202e", "a\nb"], ids=ascii)
def test_nothing_that_a_terminal_obeys_is_printed(checkpoint, tmp_path, odd):
    said = [
        make(checkpoint, "null", "--chunks", 1, prompt=f"a {odd} star"),
        make(checkpoint, tmp_path / odd / "a.mp4"),
        run("--prompt", PROMPT, "--checkpoint", odd),
        run(f"--{odd}"),
        run("--prompt", PROMPT, "--checkpoint", checkpoint, "--dry-run", "--dtype", odd),
    ]
    assert [done.exit_code for done in said] == [0, 2, 2, 2, 2]
    for done in said:
        assert "".join(done.output.splitlines()).isprintable(), done.output
    assert "\\" in said[1].output


def test_a_prompt_of_a_book_s_length_is_shown_in_part(checkpoint, tmp_path):
    folder = as_trained_on("sprites", checkpoint, tmp_path / "sprites")
    book = "a cat playing the piano " * 5000
    for option in ("--chunks=1", "--dry-run"):
        done = make(folder, "null", option, prompt=book)
        assert done.exit_code == 0
        assert "a cat playing" in done.output
        assert max(map(len, done.output.splitlines())) < 2 * LONGEST


def test_a_prompt_that_is_no_text_is_refused_in_one_line(checkpoint):
    assert_one_line(make(checkpoint, "null", prompt="a \udcff star"), "the prompt is not UTF-8 text")


def test_by_default_a_video_does_not_depend_on_the_cores(checkpoint, tmp_path, monkeypatch):
    for cores in (1, 64):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert prepare(PROMPT, checkpoint, seconds=1)[0].threads == THREADS


def test_a_sidecar_says_what_decides_how_numbers_round(checkpoint, tmp_path):
    assert make(checkpoint, tmp_path / "a.mp4", "--chunks", 1).exit_code == 0
    path = tmp_path / "a.mp4.json"
    told = json.loads(path.read_text())
    assert told["machine"]["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert told["versions"].keys() >= {"torch", "numpy", "av", "transformers", "tokenizers", "ftfy"}
    told["machine"]["instruction_set"] = "AVX1024"
    path.write_text(json.dumps(told))
    again = run("--repeat", path, "--dry-run")
    assert "frames may differ from before: instruction set was AVX1024, is" in again.stderr
    del told["machine"]
    path.write_text(json.dumps(told))
    assert run("--repeat", path, "--dry-run").stderr == ""


def start(checkpoint, output, *more):
    code = "from runtime.cli.run import main; main()"
    arguments = ["--prompt", PROMPT, "--checkpoint", str(checkpoint), "-o", str(output), *map(str, more)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.PIPE)


def wait_for(path, size, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.stat().st_size > size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not reach {size} bytes in {seconds} s")


def test_an_interrupted_video_is_whole(checkpoint, tmp_path):
    output = tmp_path / "a.mp4"
    process = start(checkpoint, output, "--minutes", 600)
    wait_for(output, 100_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said.decode()
    assert b"Traceback" not in said
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["complete"] is False
    assert len(frames_of(output)) == told["frames_written"] > 0


def test_a_killed_video_plays(checkpoint, tmp_path):
    output = tmp_path / "a.mp4"
    process = start(checkpoint, output, "--minutes", 600)
    wait_for(output, 400_000)
    process.kill()
    process.communicate(timeout=60)
    assert len(frames_of(output)) >= 16
