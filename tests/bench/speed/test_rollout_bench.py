"""The benchmark of a whole video: it times a real command and keeps what it has when it is interrupted."""

import json

import pytest
from click.testing import CliRunner

import bench.speed.rollout
from bench.cli import main as vmla_bench

pytestmark = pytest.mark.cpu


def run(checkpoint, path):
    arguments = ["rollout", "--checkpoint", str(checkpoint), "--minutes", "0.1", "-o", str(path)]
    return CliRunner().invoke(vmla_bench, arguments)


def test_a_whole_video_is_timed_and_told_of(checkpoint, tmp_path):
    path = tmp_path / "rollout.json"
    result = run(checkpoint, path)
    assert result.exit_code == 0, result.output
    told = json.loads(path.read_text())
    assert told["complete"]
    assert told["frames"] == 96
    assert told["resumed"] is None or told["resumed"]["frames"] == 96
    assert 0 < told["first_frame_seconds"] <= told["wall_seconds"]
    assert told["frames_per_second"] == pytest.approx(96 / told["wall_seconds"], rel=0.02)
    assert {"luma", "sharpness"} <= told["picture"][0].keys()
    assert json.loads(result.output.splitlines()[-1])["wall_seconds"] == told["wall_seconds"]


def test_an_interrupted_one_keeps_its_times(checkpoint, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.speed.rollout, "drift_of", interrupted)
    assert run(checkpoint, tmp_path / "rollout.json").exit_code != 0
    kept = json.loads((tmp_path / "rollout.json").read_text())
    assert (kept["complete"], kept["frames"]) == (False, 96)
    assert "drift" not in kept
