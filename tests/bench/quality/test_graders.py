"""Grades over a Ray cluster are those of one machine."""

import json

import pytest
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from vmla.cluster.library import OF_THIS_MACHINE, QUIET

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def test_grades_are_the_same_by_two_workers(checkpoint, tmp_path):
    ray.init(num_cpus=8, **QUIET, **OF_THIS_MACHINE)
    try:
        told = []
        for more in ((), ("--ray",)):
            asked = ("--checkpoint", checkpoint, "--prompts", 4, "--batch", 2, "--seconds", "4,6")
            output = tmp_path / f"grades{len(told)}.json"
            words = [str(word) for word in ("grades", *asked, "-o", output, *more)]
            result = CliRunner().invoke(vmla_bench, words)
            assert result.exit_code == 0, result.output
            told.append(json.loads(output.read_text()))
    finally:
        ray.shutdown()
    for name in ("grades", "graded", "groups", "failed", "prompts", "complete"):
        assert told[0][name] == told[1][name]
