"""A model's card says what its records say, whichever model ships."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from bench.report.readme import render
from plugins.documents.json_file import read_json
from vmla.train.cli.commands import main
from vmla.weights.checkpoint import open_checkpoint, shipped_names
from vmla.world.grader.grade import QUESTIONS
from vmla.world.worlds import FIRST

pytestmark = pytest.mark.cpu

RESULTS = Path(__file__).parents[3] / "bench" / "results"
RIGHT = dict.fromkeys((*QUESTIONS, "all"), 0.5)


def record(*stages, words=()):
    """What `pack` writes of a run."""
    made = {"steps": 1200, "seconds": 90.0, "loss": 0.25}
    about = {"recipe": "sprites", "commit": "0" * 40, "seed": 0, "hours": 4.0, "hardware": "A, 2 cores"}
    return {
        **about,
        "torch": "2.13.0",
        "stages": dict.fromkeys(stages, made),
        "settings": {"text": {"words": words}},
    }


def results_of(folder):
    """The grades of the shipped model in `folder`, and what its world's grader is worth."""
    world = (open_checkpoint(folder).world() or FIRST).name
    (grader,) = (
        path for path in RESULTS.glob("grader*.json") if read_json(path).get("world", FIRST.name) == world
    )
    return RESULTS / f"grades-{folder.name}.json", grader


def card(folder, grades, grader):
    return CliRunner().invoke(main, ["card", str(folder), "--grades", str(grades), "--grader", str(grader)])


@pytest.fixture
def small(checkpoint, tmp_path):
    """A tiny model with a record and results of its own."""
    folder = shutil.copytree(checkpoint, tmp_path / "small")
    (folder / "training.json").write_text(json.dumps(record("codec", "text", "denoiser", "refine")))
    sampler = {"kind": "euler", "steps": 8}
    grades = {"checkpoint": "small", "prompts": 4, "sampler": sampler, "grades": {"5": RIGHT}}
    (tmp_path / "grades.json").write_text(json.dumps(grades))
    (tmp_path / "grader.json").write_text(
        json.dumps({"scenes": 9, "accuracy": {"shape": 0.995, "colour": 1.0}})
    )
    return folder


def write(folder, **changed):
    """Change values of the JSON files beside and in the folder."""
    for name, values in changed.items():
        path = {
            "grades": folder.parent / "grades.json", "grader": folder.parent / "grader.json",
            "index": folder / "model_index.json", "record": folder / "training.json",
            "sampler": folder / "scheduler" / "scheduler_config.json",
        }[name]  # fmt: skip
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    result = card(folder, folder.parent / "grades.json", folder.parent / "grader.json")
    return result, (folder / "README.md").read_text() if result.exit_code == 0 else ""


@pytest.mark.parametrize("name", shipped_names())
def test_the_card_of_a_shipped_model_is_that_of_its_record_and_results(name, tmp_path):
    folder = open_checkpoint(name).folder
    copy = shutil.copytree(folder, tmp_path / name)
    result = card(copy, *results_of(folder))
    assert result.exit_code == 0, result.output
    assert render((copy / "README.md").read_text()) == (folder / "README.md").read_text()


def test_a_card_names_the_stages_the_world_and_how_text_is_read(small):
    _, first = write(small)
    assert "reading bytes" in first and "`refine` with less of it" in first and "| refine | 1,200 |" in first
    fresh = record("codec", "text", "denoiser", "refine")
    fresh["settings"]["refinement_latents"] = {"clips": 8192}
    assert "`refine` on 8,192 other clips" in write(small, record=fresh)[1]
    assert (
        "world `sprites`" in first and "may hide each other" in first and "99.5% of rendered scenes" in first
    )
    assert "passes" not in first.split("## Grades")[1].split(":")[0]
    second, world = record("codec", "decoder", "text", "denoiser", words=["a"]), {"world": "sprites-2"}
    _, text = write(small, index={"trained_on": "sprites-2"}, record=second, grader=world)
    assert "reading words" in text and "refine" not in text and "| decoder | 1,200 |" in text
    assert "world `sprites-2`" in text and "never touch" in text


def test_a_guided_models_card_says_that_a_step_takes_two_passes(small):
    sampler = {"kind": "euler", "steps": 8, "guidance_scale": 1.5}
    _, text = write(small, grades={"sampler": sampler})
    assert "8 euler steps for each chunk, each of two passes (classifier-free guidance 1.5)" in text
    opening = {"kind": "renoise", "steps": 16, "guidance_scale": 2.0}
    _, text = write(small, grades={"sampler": {"kind": "euler", "steps": 4, "opening": opening}})
    first = (
        "16 renoise steps for the first chunk of a prompt, each of two passes (classifier-free guidance 2)"
    )
    assert f"{first}, and 4 euler steps for each other chunk:" in text


def test_grades_are_told_apart_by_the_number_of_objects(small):
    groups = {
        name: {"graded": 2, "grades": {"5": RIGHT}} for name in ("one object", "spinning", "two objects")
    }
    _, text = write(small, grades={"groups": groups})
    assert text.count("With one object (2 prompts):") == text.count("With two objects (2 prompts):") == 1
    assert "spinning (" not in text


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"record": {"stages": {"codec": {}}}}, "training.json: field stages.codec.seconds is missing"),
        ({"record": {"hours": "many"}}, "training.json: field hours is 'many'"),
        ({"record": {"settings": {"text": None}}}, "training.json: field settings.text is None"),
        ({"grades": {"grades": {"5": {"shape": 1.0}}}}, "grades.json: field grades.5."),
        ({"grades": {"grades": {"soon": RIGHT}}}, "grades.json: field grades has a row 'soon'"),
        ({"grades": {"sampler": {"steps": 0}}}, "grades.json: 0 denoising steps"),
        ({"grader": {"accuracy": {}}}, "grader.json: field accuracy is empty"),
        ({"grader": {"scenes": 10**30}}, "grader.json: field scenes is 1000000000000000000000000000000"),
    ],
    ids=str,
)
def test_a_record_or_results_with_damaged_values_are_refused(small, changed, complaint):
    assert_one_line(write(small, **changed)[0], complaint)
    assert not (small / "README.md").exists()


def test_stages_are_not_packed_without_the_start_s_whole_record(small, tmp_path):
    (small / "training.json").write_text("{}")
    words = ["pack-stages", str(tmp_path), "--start", str(small), "-o", str(tmp_path / "packed")]
    assert_one_line(CliRunner().invoke(main, words), "training.json: field", "is missing")
    assert not (tmp_path / "packed").exists()


def test_grades_of_another_model_and_a_grader_of_another_world_are_refused(small):
    assert_one_line(write(small, grades={"checkpoint": "other"})[0], "holds the grades of other")
    result, _ = write(small, grades={"checkpoint": "small"}, grader={"world": "sprites-2"})
    assert_one_line(result, "is of the world sprites-2, small of sprites")
