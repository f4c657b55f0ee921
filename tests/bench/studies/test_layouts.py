"""Models side by side: the same videos, all figures, and no work done twice."""

import json

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line
from kit.tiny.checkpoints import as_trained_on, debug_checkpoint

from bench.cli import main as vmla_bench
from bench.harness.document import read_document
from bench.quality.grades import grade_windows, held_out_prompts, shares
from bench.quality.rollouts import VideoBatch, open_denoiser, seen_rollouts
from bench.report.sections.quality import layouts_section
from bench.studies import layouts
from bench.studies.layouts import main
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

ASKED = ("--prompts", 2, "--seconds", "4,12")


@pytest.fixture(scope="module")
def per_head(tmp_path_factory):
    """A checkpoint with a cache for each head."""
    return debug_checkpoint(tmp_path_factory.mktemp("per-head") / "debug", layout="mha")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def compared(checkpoint, per_head, tmp_path_factory):
    output = tmp_path_factory.mktemp("layouts") / "layouts.json"
    models = ("--model", f"latent={checkpoint}", "--model", f"per head={per_head}")
    result = run(*models, *ASKED, "-o", output)
    assert result.exit_code == 0, result.output
    return output, models


def test_every_figure_of_every_model_is_there(compared, checkpoint):
    document = json.loads(compared[0].read_text())
    latent, per_head = document["models"]
    assert (latent["layout"], per_head["layout"]) == ("mla", "mha")
    assert (latent["cached_numbers"], per_head["cached_numbers"]) == (24, 128)
    for row in document["models"]:
        assert set(row["grades"]) == {"4", "12"}
        assert [point["second"] for point in row["curve"]] == [12]
        assert row["frames_per_second"] > 0
        assert len(row["rounds"]) == layouts.ROUNDS
    assert document["complete"]
    opened, prompts = open_checkpoint(checkpoint), held_out_prompts(2, seed=1000)
    engine, _ = open_denoiser(opened, None)
    line = type("Quiet", (), {"show": lambda self, text: None})()
    seen = seen_rollouts(engine, opened, VideoBatch(0, prompts, 1000), (4, 12), line=line)
    graded = [one for second, frames in seen for one in grade_windows(prompts, second, frames)]
    assert latent["grades"] == shares(graded)
    [table] = layouts_section(document).tables
    assert [row[0] for row in table.rows] == ["latent", "per head"]
    assert all(len(row) == len(table.headings) for row in table.rows)
    assert [row[2] for row in table.rows] == ["96", "512"]


def test_a_model_that_was_watched_is_not_watched_again(compared, tmp_path, monkeypatch):
    output, models = compared
    document, kept = json.loads(output.read_text()), tmp_path / "kept.json"
    first, _ = document["models"]
    kept.write_text(json.dumps(document | {"models": [first], "complete": False}))
    watched, watch = [], layouts.watch

    def watching(model, *rest):
        watched.append(model.name)
        return watch(model, *rest)

    monkeypatch.setattr(layouts, "watch", watching)
    assert run(*models, *ASKED, "-o", kept).exit_code == 0
    assert watched == ["per head"]
    again = json.loads(kept.read_text())["models"]
    assert [row["grades"] for row in again] == [row["grades"] for row in document["models"]]


def test_models_of_different_worlds_are_only_timed(checkpoint, tmp_path):
    other, output = as_trained_on("sprites-2", checkpoint, tmp_path / "other"), tmp_path / "speed.json"
    models = ("--model", f"a={checkpoint}", "--model", f"b={other}")
    assert_one_line(run(*models, "--prompts", 2), "different worlds", "--prompts 0")
    assert run(*models, "--prompts", 0, "-o", output).exit_code == 0
    document = read_document(output)
    assert all(row["frames_per_second"] > 0 and row["grades"] == {} for row in document["models"])
    (table,) = layouts_section(document).tables
    assert table.title == "speed alone, float32"
    assert all(len(row) == len(table.headings) == 4 for row in table.rows)


def test_what_cannot_be_compared_is_refused(checkpoint, tmp_path):
    assert_one_line(run("--model", f"a={checkpoint}", "--model", f"a={checkpoint}"), "two models of one name")
    assert_one_line(run("--model", f"a={tmp_path}"), str(tmp_path))


@pytest.mark.parametrize("verb", [["layouts", "--model", "sprites"], ["grades"]])
@pytest.mark.parametrize("listed", ["x", "5,", "-1", "0", "1.5"])
def test_seconds_that_are_none_are_refused_in_one_line(verb, listed):
    result = CliRunner().invoke(vmla_bench, [*verb, "--seconds", listed])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("is not a list of whole seconds such as 1,60,179")
