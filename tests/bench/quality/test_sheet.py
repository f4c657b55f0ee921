"""The contact sheet: it shows every word of the world, and marks what its prompt did not ask for."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.tiny.checkpoints import as_trained_on
from PIL import Image

from bench.cli import main as vmla_bench
from bench.quality.sheet import WRONG, broken, covering_prompts, draw_sheet, failed_questions, rows_in_order
from vmla.world.caption import describe, read
from vmla.world.render import render
from vmla.world.scene import COLOURS, MOTIONS, SHAPES, draw_scene
from vmla.world.worlds import SECOND

pytestmark = pytest.mark.cpu


def truth(seed=0):
    """A scene's prompt and its window, [64, 3, H, W] uint8."""
    scene = draw_scene(np.random.default_rng(seed), objects=1, world=SECOND)
    return describe(scene), (render(scene, 64).clamp(0, 1) * 255).round().to(torch.uint8)


def test_every_word_is_shown_and_pairs_follow():
    prompts = covering_prompts(SECOND, seed=0, pairs=3)
    requests = [read(prompt).requests for prompt in prompts]
    assert [len(asked) for asked in requests] == [1] * (len(prompts) - 3) + [2] * 3
    single = [asked[0] for asked in requests[:-3]]
    assert {one.shape for one in single} == set(SHAPES)
    assert {one.colour for one in single} == set(COLOURS)
    assert {one.motion for one in single} == set(MOTIONS)
    assert len(single) < len(SHAPES) + len(COLOURS) + len(MOTIONS)


def test_what_fails_is_named_and_motion_is_not_asked_of_one_second():
    prompt, frames = truth()
    assert failed_questions(prompt, 4, frames, SECOND) == ()
    colour = read(prompt).requests[0].colour
    other = prompt.replace(colour, "white" if colour != "white" else "red")
    assert failed_questions(other, 4, frames, SECOND) == ("colour",)
    still = frames[:1].expand(64, -1, -1, -1)
    moving = prompt.replace(read(prompt).requests[0].motion, "bouncing")
    assert "motion" in failed_questions(moving, 4, still, SECOND)
    assert "motion" not in failed_questions(moving, 1, still[:16], SECOND)


def test_rows_keep_the_order_of_prompts_and_failures_have_a_frame():
    (right, frames), (_, others) = truth(), truth(5)
    wrong = "a small white ring bouncing and a large red star resting on a beige background"
    found = [(0, 60, frames), (0, 4, frames), (1, 4, others), (1, 60, others)]
    rows = rows_in_order([right, wrong], found, SECOND)
    assert [prompt for prompt, _ in rows] == [right, wrong]
    assert not any(picture.failed for picture in rows[0][1])
    assert all("count" in picture.failed for picture in rows[1][1])
    sheet = torch.from_numpy(np.array(draw_sheet(rows, (4, 60))))
    assert (sheet == torch.tensor(WRONG)).all(-1).sum() > 500


def test_a_long_prompt_takes_several_lines_and_keeps_its_words():
    prompt = "a small blue ring resting and a small red square resting on a navy background"
    lines = broken(prompt, 30, len)
    assert " ".join(lines) == prompt
    assert len(lines) > 2 and all(len(line) <= 30 for line in lines)
    assert broken("background red", 4, len) == ["background", "red"]


def test_the_command_writes_a_picture_of_a_model_and_refuses_what_has_no_world(checkpoint, tmp_path):
    asked = ["sheet", str(checkpoint), "-o", str(tmp_path / "sheet.png"), "--seconds", "1", "--pairs", "0"]
    refused = CliRunner().invoke(vmla_bench, asked)
    assert refused.exit_code == 2 and "no world whose truth is known" in refused.output
    folder = as_trained_on("sprites-2", checkpoint, tmp_path / "model")
    asked[1] = str(folder)
    result = CliRunner().invoke(vmla_bench, asked)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 200
    broken = CliRunner().invoke(vmla_bench, [*asked[:4], "--seconds", "1,x"])
    assert broken.exit_code == 2 and "whole seconds" in broken.output
