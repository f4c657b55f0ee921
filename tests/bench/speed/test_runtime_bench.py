"""The benchmark of the runtime, on the tiny model: what it counts and how its figures come about."""

import json

import pytest
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.harness.document import read_document
from bench.speed.runtime import TimedRun, figures_of, operations_per_chunk, plain_engine, run_session
from runtime.cli.export import main as vmla_export
from runtime.rollout.rollout import rollout
from runtime.session.replay import new

pytestmark = pytest.mark.cpu

RED = "a red star bouncing on a navy background"


def frames_of(job, engine):
    return rollout(engine, job.decoders()(), job.prompts, job.sampler, seeds=[job.seed], chunks=job.chunks)


def take(speed, gaps, outside=0.0):
    return TimedRun(frames_per_second=speed, gaps=gaps, shares={"other_share": outside, "engine_share": 0.9})


def test_the_figures_are_those_of_the_takes():
    gaps = [0.1] * 99
    takes = {
        "plain": [take(20.0, gaps), take(30.0, gaps)],
        "now": [take(50.0, gaps, 0.01), take(48.0, [*gaps, 0.3], 0.03)],
        "unsaved": [take(50.0, gaps), take(50.0, gaps)],
    }
    figures = figures_of(takes)
    assert figures["frames_per_second"] == {"plain": 25.0, "now": 49.0, "unsaved": 50.0}
    assert figures["times_plain"] == pytest.approx(49 / 25)
    assert figures["times_plain_by_half"] == [2.5, 1.6]
    assert figures["saving_costs"] == pytest.approx(0.02)
    assert figures["outside_share"] == pytest.approx(0.02)
    assert (figures["chunk_p50"], figures["chunk_p99_over_p50"]) == (0.1, 1.0)
    assert "compiled" not in figures
    faster = figures_of({**takes, "compiled": [take(80.0, gaps), take(70.0, gaps)]})
    assert faster["frames_per_second"]["compiled"] == 75.0
    assert faster["compiled"]["times_plain"] == 3.0
    assert faster["times_plain"] == figures["times_plain"]


def test_the_plain_engine_gives_what_the_other_gives_and_does_more(checkpoint):
    order = new(RED, checkpoint, scale=1, chunks=4)
    plain, other = plain_engine(order), order.job.engine()
    made = [[chunk.frames for chunk in frames_of(order.job, engine)] for engine in (plain, other)]
    assert max(float((a - b).abs().max()) for a, b in zip(*made, strict=True)) < 1e-3
    assert operations_per_chunk(order, plain) > operations_per_chunk(order, other) > 50


def test_a_take_is_timed_after_its_first_chunk(checkpoint, tmp_path):
    made = run_session(new(RED, checkpoint, scale=1, chunks=5), tmp_path / "a.mp4", saved=True)
    assert len(made.gaps) == 4
    assert made.frames_per_second == pytest.approx(12 * 4 / sum(made.gaps))
    assert made.shares["state_share"] > 0
    assert made.shares["engine_share"] > 0


def test_one_command_writes_the_document(checkpoint, tmp_path):
    output = tmp_path / "runtime.json"
    engine = tmp_path / "engine"
    wanted = ["--checkpoint", str(checkpoint), "--backend", "onnx", "--precision", "fp32", "-o", str(engine)]
    assert CliRunner().invoke(vmla_export, ["build", *wanted]).exit_code == 0
    arguments = ["runtime", "--checkpoint", str(checkpoint), "--engine", str(engine), "--chunks", "4"]
    result = CliRunner().invoke(vmla_bench, [*arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    document = read_document(output)
    line = json.loads(result.output.splitlines()[-1])
    assert document["complete"] is True
    assert line["times_plain"] == document["times_plain"] > 0
    assert document["compiled"]["times_plain"] > 0
    assert document["resumed"]["frames"] == 12 * 24
    assert document["resume_seconds"] > 0
    assert {len(takes) for takes in document["takes"].values()} == {2}
    assert document["operations_per_chunk"]["plain"] > document["operations_per_chunk"]["now"]
