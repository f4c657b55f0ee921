"""The Triton kernels, interpreted on a CPU, equal the reference; their sizes are chosen as documented."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.triton.split_kv import Launch, TimedSplits, best_splits, candidates, fastest_splits
from plugins.triton.tiles import divisor, halves, power_of_two

pytestmark = pytest.mark.cpu

HERE = Path(__file__).parent
CHECKS = ["expand", "attention", "waves", "absorbed", "float8", "float8_absorbed", "nothing_valid"]


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
    assert best_splits(tiles=444, keys=9360, processors=132) == 1  # 1 % is not worth 115 MB
    assert best_splits(tiles=1, keys=100, processors=132) == 1
    assert best_splits(tiles=1, keys=400, processors=132) <= 3


def timed(times, splits=(1, 2, 3)):
    """What is chosen where one split, two and three take `times`, and how often each ran."""
    ran = []

    def timer(call):
        call()
        return next(times[ran[-1]])

    times = {count: itertools.cycle(of) for count, of in zip(splits, times, strict=True)}
    return fastest_splits(ran.append, timer, splits), ran


def test_the_fastest_number_of_splits_is_taken_and_the_fewest_of_equals():
    assert timed([[616], [600], [580]])[0] == 3
    assert timed([[616], [550], [580]])[0] == 2
    assert timed([[616], [610], [612]])[0] == 1  # 1 % may be noise
    assert timed([[616, 900, 616], [700], [700, 100, 700]])[0] == 1  # one sample is not the rule


def test_each_number_of_splits_runs_once_untimed_and_then_in_turns():
    _, ran = timed([[1], [1], [1]])
    assert ran[:9] == [1, 2, 3, 1, 2, 3, 3, 2, 1]
    assert {ran.count(count) for count in (1, 2, 3)} == {6}


def test_a_launch_is_timed_once_and_another_one_is_not_known():
    table, launch = TimedSplits(), Launch("mla_attention", "torch.bfloat16", 4680, 12, 9360)
    times = {1: 3.0, 2: 2.0, 3: 4.0}
    ran = []

    def timer(call):
        call()
        return times[ran[-1]]

    assert table.find(launch) is None
    assert [table.time(launch, ran.append, timer) for _ in range(2)] == [2, 2]
    assert len(ran) == 18
    assert table.find(launch) == 2 and table.find(launch._replace(keys=100)) is None
    assert [candidates(keys) for keys in (100, 300, 9360)] == [(1,), (1, 2), (1, 2, 3)]


def test_widths_are_taken_apart():
    assert [power_of_two(width) for width in (8, 96, 128)] == [16, 128, 128]
    assert [divisor(width) for width in (16, 48, 192, 256)] == [16, 16, 64, 64]
    assert [halves(width) for width in (16, 192, 200, 24)] == [(16, 0), (128, 64), None, None]
