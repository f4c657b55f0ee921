"""Every choice of the conversion varied alone, on per-head models of a few thousand parameters."""

import json
from dataclasses import asdict, fields

import pytest
import torch
from click.testing import CliRunner
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.models import draw

from bench.cli import main as vmla_bench
from bench.harness.document import read_document
from bench.report.readme import section_tables
from bench.report.sections.studies import conversion_section
from bench.studies import conversion, conversion_trial
from bench.studies.conversion import CALIBRATION, DEFAULT, VALUES, compared, variants
from vmla.config import named_config
from vmla.weights.conversion.spectral import Choices

pytestmark = pytest.mark.cpu

MODEL = named_config("debug")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A per-head model."""
    return debug_checkpoint(tmp_path_factory.mktemp("heads") / "mha", layout="mha", seed=3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips as a run leaves them."""
    folder = tmp_path_factory.mktemp("latents")
    latents = draw(10, MODEL.in_channels, 12, MODEL.sample_height, MODEL.sample_width).half()
    text = draw(10, MODEL.text_tokens, MODEL.text_dim, seed=1).half()
    torch.save({"latents": latents, "text": text, "settings": {}}, folder / "latents-000000.pt")
    return folder


@pytest.fixture
def run(heads, clips, tmp_path, monkeypatch):
    """Runs the verb; few batches are judged."""
    monkeypatch.setattr(conversion_trial, "JUDGED", 2)

    def bench(*more, name="found", start=heads):
        arguments = ["conversion", "debug", "--from", start, "--calibration", clips,
                     "--runs", tmp_path / name, "-o", tmp_path / f"{name}.json", *more]  # fmt: skip
        return CliRunner().invoke(vmla_bench, [str(word) for word in arguments])

    return bench


def test_each_variant_changes_one_thing_and_all_choices_are_varied():
    standard, (first, *others) = asdict(Choices()), variants()
    assert (first.name, first.choices) == (DEFAULT, Choices())
    changed = []
    for variant in others:
        own = [key for key, value in asdict(variant.choices).items() if value != standard[key]]
        assert len(own) + (variant.clips != first.clips) + variant.noise == 1
        changed += own
    assert set(changed) == set(VALUES) == {field.name for field in fields(Choices)} - {"seed"}
    assert len({variant.name for variant in variants()}) == len(variants())
    assert [variant.name for variant in variants(("whiten",))] == [DEFAULT, "--no-whiten"]


def test_a_variant_is_compared_with_the_defaults_of_its_own_model():
    def row(checkpoint, variant, healed):
        return {"checkpoint": checkpoint, "variant": variant, "energy": {}, "output_error": [0.1, 0.3],
                "loss": 2.0, "healed": healed}  # fmt: skip

    rows = [row("a", DEFAULT, 1.0), row("a", "x", 1.5), row("b", DEFAULT, 3.0), row("b", "x", 3.5)]
    plain, other = compared(rows)
    assert plain["over_defaults"] == {"mean": 0.0, "deviation": 0.0}
    assert other["over_defaults"] == {"mean": 0.5, "deviation": 0.0}
    assert (other["healed"]["mean"], other["models"]) == (2.5, 2)
    assert (other["output_error"]["mean"], other["worst_layer"]["mean"]) == (0.2, 0.3)


def test_every_variant_is_measured_and_found_again(run, tmp_path, monkeypatch):
    arguments = ("--heal", 2, "--only", "init", "--only", CALIBRATION)
    inner, asked = conversion.ConversionTrial.result, []

    def result(self):
        asked.append(self.variant.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return inner(self)

    with monkeypatch.context() as patched:
        patched.setattr(conversion.ConversionTrial, "result", result)
        assert run(*arguments).exit_code != 0
    document = read_document(tmp_path / "found.json")
    assert [row["variant"] for row in document["rows"]] == [DEFAULT, "--init random"]
    assert not document["complete"]
    kept = document["rows"]

    assert run(*arguments, name="whole").exit_code == 0
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    document, whole = (read_document(tmp_path / f"{name}.json") for name in ("found", "whole"))
    assert document["complete"]
    assert document["rows"][:2] == kept
    assert document["rows"] == whole["rows"]  # determined by seeds, wherever it stopped
    assert "--only init --only calibration" in document["command"]
    spectral, random, *_ = document["rows"]
    assert sum(spectral["output_error"]) < sum(random["output_error"])
    assert random["energy"] == {}
    assert 0 < spectral["energy"]["keys and values"] < 1
    assert all(row["loss"] > 0 and row["healed"] > 0 for row in document["rows"])
    assert spectral["healed"] != spectral["loss"]
    (table,) = conversion_section(document).tables
    assert len(table.rows) == len(document["rows"]) == 5
    assert all(len(row) == len(table.headings) for row in table.rows)
    assert "loss after 2 steps" in "\n".join(section_tables(document))
    assert json.loads(done.output.splitlines()[-1])["losses"][DEFAULT]["mean"] > 0


def test_without_healing_the_loss_at_once_decides(run, tmp_path):
    assert run("--heal", 0, "--only", "rotary").exit_code == 0
    rows = read_document(tmp_path / "found.json")
    assert [row["healed"] for row in rows["rows"]] == [None, None]
    assert not list(tmp_path.rglob("healing"))
    difference = rows["rows"][1]["loss"] - rows["rows"][0]["loss"]
    assert rows["compared"][1]["over_defaults"]["mean"] == pytest.approx(difference, abs=1e-4)
    refused = run("--heal", 1, "--only", "rotary")
    assert refused.exit_code == 2
    assert "settings.json was made with heal = 0, this recipe has 1" in refused.output.splitlines()[-1]


def test_latent_attention_is_refused_in_one_line(run, checkpoint):
    refused = run(start=checkpoint)
    assert refused.exit_code == 2
    assert "has latent attention; give a model of the layout mha" in refused.output
    assert len(refused.output.splitlines()) == 1
