"""The comparison of engines: its method, its document, what it refuses."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.harness import peaks
from bench.harness.document import read_document
from bench.harness.engine_arms import ENGINES, choose_arms
from bench.harness.paired_timing import Pair, paired, percentile
from bench.harness.subject import endless, filling, open_subject, random_model
from bench.harness.time_budget import Budget
from bench.speed import engines
from plugins.errors import UserError
from runtime.engines.base import EagerEngine
from vmla.config import named_config

pytestmark = pytest.mark.cpu

QUICK = ["engines", "--shape", "debug", "--rounds", "2", "--precisions", "fp32"]


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    monkeypatch.setitem(peaks.SIDES, "cpu", 64)
    monkeypatch.setitem(peaks.COPIED, "cpu", 1 << 16)


def invoke(*arguments):
    return CliRunner().invoke(vmla_bench, list(arguments))


def test_a_run_gives_rows_errors_and_one_line(tmp_path):
    path = tmp_path / "engines.json"
    done = invoke(*QUICK, "--engines", "eager-mha,tensorrt", "-o", str(path), "--folder", str(tmp_path))
    assert done.exit_code == 0, done.output
    *_, where, line = done.output.splitlines()
    assert where == str(path)
    assert json.loads(line)["refused"] == ["tensorrt fp32"]
    document = read_document(path)
    assert document["complete"]
    named = f"--shape debug --engines eager-mha,tensorrt --precisions fp32 --rounds 2 --folder {tmp_path}"
    assert document["command"] == f"vmla-bench engines {named}"
    itself, heads, tensorrt = document["rows"]
    assert itself["engine"] == "A against A" and len(itself["samples_ms"]) == 4
    assert heads["error_velocity"] < 1e-6 and heads["launches_per_chunk"] > 0
    assert heads["host_reads_per_chunk"] == 0
    assert heads["frames_per_second"] == pytest.approx(12e3 / heads["chunk_ms"]["p50"])
    assert "GPU" in tensorrt["refused"]


def test_what_was_measured_stays_when_it_is_interrupted(tmp_path, monkeypatch):
    row, path = engines.Bench.row, tmp_path / "engines.json"

    def interrupted(bench, arm):
        if arm.engine == "absorbed":
            raise KeyboardInterrupt
        return row(bench, arm)

    monkeypatch.setattr(engines.Bench, "row", interrupted)
    done = invoke(*QUICK, "--engines", "eager-mla,absorbed", "-o", str(path), "--folder", str(tmp_path))
    assert done.exit_code != 0
    document = read_document(path)
    assert [row["engine"] for row in document["rows"]] == ["A against A", "eager-mla"]
    assert not document["complete"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["engines", "--engines", "steam"], "no such engine: steam"),
        (["engines", "--precisions", "int3"], "no such precision: int3"),
        (["engines", "--shape", "vast"], "no such shape: vast"),
        (["engines", "--shape", "debug", "--checkpoint", "sprites"], "not both"),
        (["engines", "--device", "cuda:9"], "no device"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert said in done.output and len(done.output.strip().splitlines()) == 1


def test_every_engine_comes_in_every_precision():
    arms = choose_arms(None, ("fp32", "bf16"))
    assert [arm.engine for arm in arms[::2]] == list(ENGINES)
    assert {arm.layout for arm in arms if arm.engine == "eager-mha"} == {"mha"}


def test_a_slow_machine_does_not_become_a_ratio():
    """Both arms of a round slow down alike: the rounds' ratios do not see it."""
    pair = Pair([1, 1, 5, 5, 2, 2], [2, 2, 10, 10, 4, 4])
    assert pair.by_round == [2, 2, 2] and pair.typical == 2 and pair.spread == 0
    assert pair.differs(0.3) and not pair.differs(0.4)
    assert percentile([4, 1, 3, 2], 50) == 2.5 and percentile([1, 2], 100) == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_against_a_is_one_within_its_own_spread(seed):
    generator = torch.Generator().manual_seed(seed)

    class NoisyClock:
        def time(self, call):
            call()
            return float(torch.rand((), generator=generator)) ** 2 + 10  # now and then late

    itself = paired(lambda turn: turn, lambda turn: turn, NoisyClock(), rounds=12)
    assert abs(itself.typical - 1) <= itself.spread
    assert not itself.differs(itself.spread)


def test_a_budget_leaves_out_what_would_not_end():
    now = [0.0]

    def work(seconds):
        now[0] += seconds
        return {"took": seconds}

    budget = Budget(10, clock=lambda: now[0])
    assert budget.spend(lambda: work(4), {}) == {"took": 4}
    assert budget.spend(lambda: work(3), {}) == {"took": 3}
    assert "no time" in budget.spend(lambda: work(1), {"engine": "x"})["refused"]
    assert now == [7]


def test_random_weights_keep_the_size_of_what_they_multiply():
    model = random_model(named_config("debug"))
    x = torch.randn(1, 64, 64)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features == 64 and "time_proj" not in name:
            assert 0.8 < float(module(x).std()) < 1.25, name
    again = random_model(named_config("debug"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_shape_rolls_out_like_a_checkpoint():
    subject = open_subject(None, "debug")
    engine = EagerEngine(
        subject.transformer(), subject.text(), device=torch.device("cpu"), dtype=torch.float32
    )
    stream = endless(engine, subject.sampler(), batch=2)
    chunks = [next(stream).frames for _ in range(filling(engine.config) + 1)]
    assert filling(engine.config) == 2
    assert all(chunk.shape[0] == 2 and chunk.isfinite().all() for chunk in chunks)


def test_a_document_of_another_version_is_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"kind": "engines", "version": 0, "machine": {}}')
    with pytest.raises(UserError, match="version 0"):
        read_document(path)
