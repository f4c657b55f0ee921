"""Some hundred files, damaged: each command takes them or ends in one line, and does no harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.contract import Ended, violations

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
TRIED = 100


def test_a_hundred_damaged_files_do_no_harm():
    command = [sys.executable, "-m", "tests.faults", "--count", str(TRIED), "--seconds", "20"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert f"{TRIED} tried, 0 failed" in done.stdout, done.stdout + done.stderr


def ended(**changes):
    plain = {"status": 2, "said": "", "complained": "Error: x\n", "hung": False, "seconds": 0.0}
    return Ended(**plain | changes)


@pytest.mark.parametrize(
    ("run", "kinds"),
    [
        (ended(), []),
        (ended(status=0, complained="warning: x\n"), ["accepted"]),
        (ended(complained=""), ["silent"]),
        (ended(complained="Error: a\nb\n"), ["several lines"]),
        (ended(complained="Error: \x1b[2J\n"), ["control characters"]),
        (ended(complained="x" * 5000), ["endless line"]),
        (ended(status=1, complained="Traceback (most recent call last):\nMemoryError\n"), ["memory"]),
        (ended(status=1, complained="Traceback (most recent call last):\nKeyError\n"), ["traceback"]),
        (ended(status=-11, complained=""), ["signal"]),
        (ended(status=-9, hung=True), ["hang"]),
    ],
)
def test_what_breaks_the_contract_is_named(run, kinds):
    assert list(violations(run, {}, {}, refused=True)) == kinds


def test_what_happens_on_disk_is_seen():
    before, after = (
        {"a": (1, 1, 1), "b": (1, 1, 1)},
        {"a": (1, 2, 2), "c": (1, 1, 1), "home/EXECUTED": (1, 0, 0)},
    )
    seen = list(violations(ended(), before, after, refused=True))
    assert seen == ["executed", "written outside", "removed"]
    assert list(violations(ended(), before, before | {"out/x": (1, 1, 1)}, refused=True)) == []
