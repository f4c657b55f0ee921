"""The Triton kernels, interpreted on a CPU, equal the reference; their sizes are chosen as documented."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.triton.split_kv import best_splits
from plugins.triton.tiles import divisor, halves, power_of_two

pytestmark = pytest.mark.cpu

HERE = Path(__file__).parent
CHECKS = ["expand", "attention", "absorbed", "float8", "float8_absorbed", "nothing_valid"]


@pytest.fixture(scope="module")
def outcomes():
    """What is wrong with each kernel: one process interprets them all, as Triton decides on import."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", str(HERE / "interpreted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(check, outcomes):
    assert outcomes[check] is None, outcomes[check]


def test_keys_are_split_where_the_last_wave_would_be_mostly_idle():
    assert best_splits(tiles=4, keys=9360, processors=132) == 8
    assert best_splits(tiles=133, keys=32760, processors=132) > 1
    assert best_splits(tiles=132, keys=9360, processors=132) == 1
    assert best_splits(tiles=444, keys=9360, processors=148) == 1
    assert best_splits(tiles=1, keys=100, processors=132) == 1
    assert best_splits(tiles=1, keys=400, processors=132) <= 3


def test_widths_are_taken_apart():
    assert [power_of_two(width) for width in (8, 96, 128)] == [16, 128, 128]
    assert [divisor(width) for width in (16, 48, 192, 256)] == [16, 16, 64, 64]
    assert [halves(width) for width in (16, 192, 200, 24)] == [(16, 0), (128, 64), None, None]
