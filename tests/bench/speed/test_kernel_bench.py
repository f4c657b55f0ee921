"""The kernel benchmark runs anywhere, and shows what the operator costs on a CPU."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bench.harness.paired_timing import Pair, paired
from bench.speed.attention_arms import RotatingInputs, bare_sdpa, expanded, in_waves
from bench.speed.kernels import MOST_OVERHEAD, PUBLISHED, SMALL, main
from plugins.operator import dense_attention
from plugins.triton import launch

pytestmark = pytest.mark.cpu


class ProcessorClock:
    """Time that this thread spent computing, which a busy machine hardly changes."""

    def time(self, call):
        began = time.thread_time()
        call()
        return 1e3 * (time.thread_time() - began)


class CountingClock:
    def __init__(self):
        self.calls = 0

    def time(self, call):
        self.calls += 1
        call()
        return float(self.calls)


def test_the_command_reports_every_arm(tmp_path):
    path = tmp_path / "kernels.json"
    done = CliRunner().invoke(
        main, ["--device", "cpu", "--rounds", "1", "--output", str(path)], catch_exceptions=False
    )
    last = json.loads(done.output.splitlines()[-1])
    report = json.loads(path.read_text())
    assert last["kind"] == "kernels" and last["operator_over_sdpa"] > 0
    assert [row["arm"] for row in report["rows"]] == ["expanded, auto", "absorbed, auto", "expand, auto"]
    assert all(row["error"] < 1e-5 and len(row["samples_ms"]) == 2 for row in report["rows"])
    assert report["versions"]["torch"] == torch.__version__


def test_the_operator_costs_at_most_a_twentieth_over_sdpa():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = RotatingInputs(SMALL, dtype=torch.float32, device=torch.device("cpu"))
        with torch.inference_mode():
            pair = paired(bare_sdpa(inputs).call, expanded(inputs, "auto").call, ProcessorClock(), rounds=20)
    finally:
        torch.set_num_threads(threads)
    # What else runs on the machine only ever adds, to caches and clock too: the least of each is compared.
    assert pair.best_ratio <= MOST_OVERHEAD


def test_attention_in_waves_is_an_arm_where_waves_leave_something(monkeypatch):
    """The library stands in for the kernel, which would need a GPU."""
    monkeypatch.setattr(launch, "attention_strided", lambda *x: dense_attention(*x[:3]).transpose(1, 2))
    inputs = RotatingInputs(SMALL, dtype=torch.float32, device=torch.device("cpu"))  # 8 tiles
    arms = []
    for processors in (4, 5, 9):
        found = SimpleNamespace(multi_processor_count=processors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        arms.append(in_waves(inputs, 2))
    assert [arm is None for arm in arms] == [True, False, True]
    assert arms[1].name == "in waves, splits: 2" and arms[1].error() < 1e-5


def test_turns_are_taken_in_the_order_abba():
    order = []

    def note(name):
        return lambda turn: order.append((name, turn))

    pair = paired(note("a"), note("b"), CountingClock(), rounds=2, warm_up=0)
    assert [name for name, _ in order] == ["a", "b", "b", "a"] * 2
    assert [turn for _, turn in order] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert pair == Pair([1.0, 4.0, 5.0, 8.0], [2.0, 3.0, 6.0, 7.0])
    assert pair.ratio == 1.0 and pair.best_ratio == 2.0


def test_operations_at_the_published_shape():
    """269 GFLOP expanded and 437 absorbed for 9,360 keys; 9.7 to expand them (see the README of plugins)."""
    counts = (PUBLISHED.flops_expanded, PUBLISHED.flops_absorbed, PUBLISHED.flops_expand)
    assert [round(count / 1e9, 1) for count in counts] == [269.1, 437.3, 9.7]
