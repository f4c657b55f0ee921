"""The benchmark of the server: it measures a real one, and its figures are what they say."""

import json
import sys

import pytest
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.report.readme import TABLES
from bench.report.schema.kinds import read_results
from bench.serving.viewer import late_share

pytestmark = pytest.mark.cpu


def bench(*arguments):
    return CliRunner().invoke(vmla_bench, ["serve", *(str(one) for one in arguments)])


def test_a_server_is_measured_by_its_viewers(checkpoint, tmp_path):
    path = tmp_path / "serve.json"
    few = ("--streams", "1,2", "--seconds", 1.5, "--connects", 12, "--times", 1, "--threads", 1)
    done = bench("--checkpoint", checkpoint, *few, "--no-ray", "-o", path)
    assert done.exit_code == 0, done.output
    told = read_results(path)
    assert told["complete"]
    assert told["frames"] == 24
    assert [crowd["streams"] for crowd in told["crowds"]] == [1, 2]
    for crowd in told["crowds"]:
        share = crowd["frames_per_second"] / crowd["alone_frames_per_second"]
        assert crowd["share_of_alone"] == pytest.approx(share, rel=0.01)
        assert crowd["gap_seconds"]["p50"] <= crowd["gap_seconds"]["p99"]
    assert told["connects"]["count"] == 12
    assert told["connects"]["left"]["files"] <= 2
    assert 0 < told["fork"]["median_ms"] <= told["fork"]["worst_ms"]
    lines = TABLES["serve"].table(told)
    assert "**viewers at once**" in lines
    assert "| ray hop | not measured yet | not measured yet |" in lines
    fork = f"| fork | {told['fork']['median_ms']:.0f} | {told['fork']['worst_ms']:.0f} |"
    assert fork in lines
    assert any(line.startswith("| 12 | ") for line in lines)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["hand_over_ms"] == told["hand_over"]["median_ms"]


def test_whoever_lacks_ray_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = bench("--streams", "1")
    assert (done.exit_code, "videomla[ray]" in done.stderr) == (2, True)


@pytest.mark.parametrize("odd", ["", "a", "0", "1;2"])
def test_numbers_of_streams_are_numbers(odd):
    done = bench("--streams", odd)
    assert (done.exit_code, "--streams" in done.stderr) == (2, True)


def test_a_chunk_is_late_if_nothing_was_left_to_play():
    assert late_share([0.0, 0.5, 1.0, 1.5], 1.0) == 0.0
    assert late_share([0.0, 1.5, 2.4, 3.4], 1.0) == pytest.approx(1 / 3)  # one stall, and not three
    assert late_share([5.0], 1.0) == 0.0
