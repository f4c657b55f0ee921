"""The benchmark of grades: its prompts, its windows, its shares."""

import io
import json

import pytest
import torch
from click.testing import CliRunner

import bench.quality.grades
from bench.cli import VERBS
from bench.cli import main as vmla_bench
from bench.quality.grades import Graded, grade_windows, held_out_prompts, shares, what_is
from bench.quality.rollouts import WINDOW, VideoBatch, Windows, batches, open_denoiser, seen_rollouts
from vmla.cli.progress import ProgressLine
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.caption import read
from vmla.world.grader.grade import QUESTIONS, Grade, look
from vmla.world.scene import is_held_out

pytestmark = pytest.mark.cpu


def test_every_prompt_is_understood_and_held_out():
    prompts = held_out_prompts(60, seed=3)
    assert prompts == held_out_prompts(60, seed=3)
    assert len(set(prompts)) > 50
    for prompt in prompts:
        reading = read(prompt)
        assert reading.understood
        assert all(is_held_out(r.shape, r.colour, reading.background) for r in reading.requests)


def test_windows_are_the_frames_before_each_mark():
    frames = torch.linspace(0, 1, 20 * 16)[None, :, None, None, None].expand(2, -1, 3, 4, 4)
    windows = Windows((5, 20))
    found = []
    for part in frames.split(12, dim=1):
        windows.add(part)
        found += windows.pop()
    assert [second for second, _ in found] == [5, 20]
    for second, window in found:
        expected = (frames[:, second * 16 - WINDOW : second * 16] * 255).round().to(torch.uint8)
        assert torch.equal(window, expected)


def test_every_item_is_in_one_batch_and_its_seed_does_not_depend_on_the_size():
    for size in (1, 2, 3, 7, 9):
        parts = batches("abcdefg", size, seed=5)
        assert "".join(letter for part in parts for letter in part.items) == "abcdefg"
        assert all(1 <= len(part.items) <= size for part in parts)
        seeds = {letter: part.seed + i for part in parts for i, letter in enumerate(part.items)}
        assert seeds == {letter: 5 + i for i, letter in enumerate("abcdefg")}
    assert batches("", 3, seed=0) == []


def test_shares_count_what_passed():
    def graded(second, **wrong):
        answers = dict.fromkeys(("background", "colour", "shape", "motion", "count"), True)
        return Graded(prompt="p", second=second, grade=Grade(**(answers | wrong)))

    table = shares([graded(5), graded(5, colour=False), graded(60, shape=False, motion=False), graded(60)])
    assert table["5"] == {
        "background": 1, "colour": 0.5, "shape": 1, "motion": 1, "count": 1, "all": 0.5
    }  # fmt: skip
    assert table["60"]["shape"] == table["60"]["motion"] == table["60"]["all"] == 0.5


def test_an_engine_makes_as_many_videos_as_it_was_built_for(checkpoint, monkeypatch):
    opened, prompt = open_checkpoint(checkpoint), "a red star bouncing on a navy background"
    engine, fixed = open_denoiser(opened, None)
    assert (fixed, what_is(None)) == (None, "eager fp32")
    asked, encode = [], engine.encode_prompt
    monkeypatch.setattr(engine, "encode_prompt", lambda prompts: asked.append(prompts) or encode(prompts))
    line = ProgressLine(io.StringIO())
    [(second, frames)] = seen_rollouts(engine, opened, VideoBatch(0, [prompt], 0), (4,), fixed=3, line=line)
    graded = grade_windows([prompt], second, frames)
    assert [(one.prompt, one.second) for one in graded] == [(prompt, 4)]
    assert list(map(list, asked)) == [[prompt] * 3]


def test_an_interrupted_run_keeps_what_was_graded(checkpoint, monkeypatch, tmp_path):
    looked = []

    def look_twice(frames, world):
        looked.append(frames)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return look(frames, world)

    monkeypatch.setattr(bench.quality.grades, "look", look_twice)
    path = tmp_path / "grades.json"
    sizes = ["--prompts", "2", "--seconds", "4,6", "--batch", "1"]
    result = CliRunner().invoke(
        vmla_bench, ["grades", "--checkpoint", str(checkpoint), *sizes, "-o", str(path)]
    )
    assert result.exit_code != 0
    kept = json.loads(path.read_text())
    assert (kept["complete"], kept["graded"]) == (False, {"4": 1, "6": 1})
    assert all(kept["grades"]["6"][question] in (0.0, 1.0) for question in QUESTIONS)


def test_what_is_no_engine_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(vmla_bench, ["grades", "--engine", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not an engine" in result.output.splitlines()[-1]


def test_the_command_lists_its_verbs():
    result = CliRunner().invoke(vmla_bench, ["--help"])
    assert result.exit_code == 0
    for verb in VERBS:
        assert verb in result.output
    assert CliRunner().invoke(vmla_bench, ["nothing"]).exit_code == 2
