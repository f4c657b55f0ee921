"""The comparisons on a small model: what they are made of, a study of the debug model, going on with it."""

import json
from functools import partial

import pytest
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.harness.document import read_document
from bench.report.readme import section_tables
from bench.report.sections.studies import study_section
from bench.studies import trial
from bench.studies.study import STUDIES, chosen_arms, compared, spread
from vmla.config import ModelConfig
from vmla.train.recipes.from_scratch import pretraining_recipe
from vmla.train.stages.codec import with_statistics
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.grader.grade import QUESTIONS

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_each_question_varies_one_thing(study):
    models = {arm.name: model_of(study, arm) for arm in study.arms()}
    for model in models.values():
        VideoMLA.rotary(model)  # refuses what does not fit
    by_question = {
        question: [models[arm.name] for arm in chosen_arms(study, (question,))]
        for question in ("layouts", "widths", "splits", "inits")
    }
    assert [model.layout for model in by_question["layouts"]] == ["mla", "mha"]
    assert sorted(model.kv_lora_rank for model in by_question["widths"]) == sorted(study.widths)
    assert len({model.qk_rope_head_dim for model in by_question["widths"]}) == 1
    assert len({model.qk_rope_head_dim for model in by_question["splits"]}) == 3
    assert len({model.entry_width for model in by_question["splits"]}) == 1
    assert len(by_question["inits"]) == 2
    assert chosen_arms(study, ()) == study.arms()


def model_of(study, arm) -> ModelConfig:
    return pretraining_recipe(study.recipe, **arm.sizes).model


def test_the_real_study_has_three_seeds():
    assert STUDIES["mini"].seeds >= 3
    assert len(STUDIES["mini"].widths) == 4


def row(seed, loss, share, arm="mla"):
    passed = dict.fromkeys(QUESTIONS, 0.5) | {"colour": share, "all": share}
    return {"arm": arm, "questions": ["layouts"], "seed": seed, "entry_width": 24, "loss": loss,
            "grades": {"denoiser": {"5": passed}}, "along": {"0": {"5": passed}}}  # fmt: skip


def test_the_spread_is_that_over_seeds():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "deviation": 1.0}
    assert spread([0.5]) == {"mean": 0.5, "deviation": 0.0}
    mla, mha = compared([row(0, 1.0, 0.5), row(0, 9.0, 0.1, "mha"), row(1, 2.0, 0.7)])
    assert (mla["arm"], mla["seeds"], mha["seeds"]) == ("mla", 2, 1)
    assert mla["loss"]["mean"] == 1.5
    after = mla["grades"]["denoiser"]["5"]
    assert after["all"] == after["colour"] == {"mean": 0.6, "deviation": 0.1414}
    assert after["mean"] == {"mean": 0.52, "deviation": 0.0283}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the debug study with one seed."""
    monkeypatch.setattr("vmla.train.run.with_statistics", partial(with_statistics, clips=16, frames=4))
    monkeypatch.setattr(trial, "PARTS", 2)

    def study(*more):
        arguments = ["study", "debug", "--runs", tmp_path / "runs", "-o", tmp_path / "study.json", *more]
        return CliRunner().invoke(vmla_bench, [str(word) for word in arguments])

    return study


def test_a_study_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch):
    arguments = ("--seeds", 1, "--only", "layouts", "--only", "inits")
    inner, asked = trial.Trial.result, []

    def result(self):
        asked.append(self.folder.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return inner(self)

    with monkeypatch.context() as patched:
        patched.setattr(trial.Trial, "result", result)
        assert run(*arguments).exit_code != 0
    document = read_document(tmp_path / "study.json")
    assert [one["arm"] for one in document["rows"]] == ["mla"]
    assert not document["complete"]
    first = tmp_path / "runs" / "debug" / "mla-0"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    finished = run(*arguments)
    assert finished.exit_code == 0, finished.output
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    document = read_document(tmp_path / "study.json")
    assert document["complete"]
    assert [one["arm"] for one in document["rows"]] == ["mla", "mha", "spectral", "random"]
    for one in document["rows"]:
        stages = ["denoiser", "consistency", "distribution"] if one["arm"] in ("mla", "mha") else ["denoiser"]
        assert set(one["grades"]) == set(stages)
        assert set(one["along"]) == {"0", "2"}
        assert len(one["curve"]) == 4
    spectral, random = (one["curve"] for one in document["rows"][2:])
    assert spectral != random
    opened = open_checkpoint(first / "distribution" / "checkpoint")
    assert (opened.sampler().steps, opened.model_config().layout) == (4, "mla")

    section = study_section(document)
    titles = ["layouts", "widths", "splits", "inits", "along training"]
    assert [table.title for table in section.tables] == titles
    stages = ["denoiser", "consistency", "distribution"]
    assert [row[:2] for row in section.tables[0].rows] == [[arm, s] for arm in ("mla", "mha") for s in stages]
    assert section.tables[0].rows[0][2] == "24"
    assert any("±" in line for line in section_tables(document))

    changed = json.loads((first / "result.json").read_text())
    changed["settings"]["prompts"] = 7
    (first / "result.json").write_text(json.dumps(changed))
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "result.json was made with prompts = 7, this recipe has 1" in refused.output.splitlines()[-1]
