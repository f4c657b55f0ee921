"""Cache and peaks as the machine holds them, and the floor that its peaks allow."""

import json
import mmap
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.harness import peaks
from bench.harness.document import Record, read_document
from bench.harness.memory_use import Peak
from bench.speed import memory, roofline
from bench.speed.memory import compared, count_parameters, measured_cache, streams
from bench.speed.roofline import Floor
from vmla.config import named_config
from vmla.flops import PassCost
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")


@pytest.fixture
def quick_peaks(monkeypatch):
    monkeypatch.setitem(peaks.SIDES, "cpu", 64)
    monkeypatch.setitem(peaks.COPIED, "cpu", 1 << 16)


def test_the_claimed_ratio_falls_out_of_what_is_held():
    """At Wan's widths; fewer layers and tokens take less time and change no ratio."""
    small = replace(named_config("wan-1.3b"), num_layers=2, sample_height=16, sample_width=16)
    caches = {
        layout: measured_cache(replace(small, layout=layout), torch.bfloat16, CPU)
        for layout in ("mha", "mla")
    }
    assert caches["mha"]["bytes_per_token_and_layer"] == pytest.approx(6144, rel=0.01)
    assert caches["mla"]["bytes_per_token_and_layer"] == pytest.approx(448, rel=0.01)
    claim = compared(caches)
    assert claim["less"] == pytest.approx(0.927, abs=0.002)
    assert claim["times_smaller"] == pytest.approx(13.7, rel=0.02)


def test_a_peak_sees_what_was_freed():
    """By a mapping of its own: a tensor may take memory that earlier tests freed and the heap still holds."""
    peak = Peak(CPU)
    before = peak.bytes()
    with mmap.mmap(-1, 1 << 25) as mapped:
        mapped.write(b"\1" * (1 << 25))
    assert peak.bytes() - before > 0.9 * (1 << 25)


def test_streams_are_counted_by_the_measured_cache():
    config = named_config("debug")
    caches = {
        layout: {"bytes_per_video": size, "tokens": 64} for layout, size in (("mha", 1e6), ("mla", 1e5))
    }
    rows = {row["layout"]: row for row in streams(caches, config, 1 << 30, 2)}
    assert rows["mha"]["streams"] == int((0.92 * (1 << 30) - rows["mha"]["weights_bytes"]) // 1e6)
    assert 9 < rows["mla"]["streams"] / rows["mha"]["streams"] < 11
    assert count_parameters(config) == sum(p.numel() for p in VideoMLA(config).parameters())


def test_memory_writes_caches_streams_and_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "BATCHES", (1, 2))
    path = tmp_path / "memory.json"
    arguments = ["memory", "--cache-shape", "sprites", "--shape", "debug", "--gib", "1", "-o", str(path)]
    done = CliRunner().invoke(vmla_bench, arguments)
    assert done.exit_code == 0, done.output
    line = json.loads(done.output.splitlines()[-1])
    assert line["times_smaller"] == pytest.approx(512 / 48, rel=0.05)
    passes = read_document(path)["passes"]
    assert len(passes) == 18 and all(row["peak_bytes"] is not None for row in passes)


def test_each_part_of_the_floor_is_bound_by_one_of_two_peaks():
    counted = PassCost(config=named_config("debug"))
    compute = Floor(counted=counted, precision="fp32", matrix=1.0, copy=1e30)
    traffic = Floor(counted=counted, precision="fp32", matrix=1e30, copy=1.0)
    assert compute.seconds == pytest.approx(5 * counted.flops)
    assert traffic.seconds == pytest.approx(5 * counted.bytes(4))
    both = Floor(counted=counted, precision="fp32", matrix=1.0, copy=1.0)
    assert max(compute.seconds, traffic.seconds) <= both.seconds <= compute.seconds + traffic.seconds
    assert both.frames_per_second == pytest.approx(12 / both.seconds)


def engines_file(path, hardware=None, subject="random-debug-mla"):
    row = {
        "engine": "eager-mla", "precision": "fp32", "layout": "mla", "frames_per_second": 10.0, "spread": 0.1,
        "time_over_baseline": 1.0, "differs": False, "chunk_ms": {"p50": 1.0, "p95": 1.0, "p99": 1.0},
        "share_of_matrix_peak": None,
    }  # fmt: skip
    refused = {"engine": "onnx", "precision": "bf16", "layout": "mla", "refused": "no"}
    Record("engines", path).save(subject=subject, baseline="eager-mla", rows=[row, refused], complete=True)
    if hardware is not None:
        document = json.loads(path.read_text())
        document["machine"]["hardware"] = hardware
        path.write_text(json.dumps(document))


def test_roofline_prints_the_gap_of_a_results_file(tmp_path, quick_peaks):
    earlier, path = tmp_path / "engines.json", tmp_path / "roofline.json"
    engines_file(earlier)
    done = CliRunner().invoke(
        vmla_bench, ["roofline", "--shape", "debug", "--against", str(earlier), "-o", str(path)]
    )
    assert done.exit_code == 0, done.output
    (gap,) = read_document(path)["gaps"]
    floors = {(f["layout"], f["form"], f["precision"]): f for f in read_document(path)["floors"]}
    assert len(floors) == 8
    expected = floors["mla", "expanded", "fp32"]["frames_per_second"] / 10
    assert gap["times_the_floor"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"hardware": "Another, 9 cores"}, "--across-machines"), ({"subject": "sprites"}, "of sprites")],
)
def test_a_gap_to_something_else_is_refused(tmp_path, changed, said):
    earlier = tmp_path / "engines.json"
    engines_file(earlier, **changed)
    arguments = ["roofline", "--shape", "debug", "--against", str(earlier), "-o", str(tmp_path / "r.json")]
    if "subject" in changed:
        return _refused_by_gaps(earlier, said)
    done = CliRunner().invoke(vmla_bench, arguments)
    assert done.exit_code == 2
    assert said in done.output and len(done.output.strip().splitlines()) == 1
    return None


def _refused_by_gaps(path, said):
    from plugins.errors import UserError

    with pytest.raises(UserError, match=said):
        list(roofline.gaps(read_document(path), [], "random-debug-mla", False))
