"""The GPU run on a CPU: its measurements at small shapes, its order, what it needs, how it refuses."""

import subprocess
import sys
import time
from importlib import metadata
from io import StringIO

import pytest
import torch
from click.testing import CliRunner

from bench.cli import main as vmla_bench
from bench.gpu import run as gpu
from bench.gpu.context import Context, Measurement
from bench.gpu.measurements import MEASUREMENTS
from bench.harness import peaks, time_budget
from bench.harness.document import Record, read_document
from bench.harness.engine_arms import failing
from bench.harness.subject import PROMPT, RandomText, filling, random_model, steady
from bench.harness.time_budget import Budget, Overrun, time_limit
from bench.report.page import markdown
from bench.report.schema.kinds import read_results
from bench.report.sections.gpu import gpu_section
from plugins.errors import UserError
from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.rollout import Rollout
from vmla.cli.progress import ProgressLine
from vmla.config import named_config
from vmla.scheduler import Sampler

pytestmark = pytest.mark.cpu

ALLOWED = ("torch", "numpy", "safetensors", "click", "rich", "triton")
"""What a bare GPU machine has."""
SLOW = ("compile", "aoti", "tests")
"""Measurements that take minutes."""


def context(tmp_path):
    return Context(
        config=named_config("debug"), name="debug", device=torch.device("cpu"), rounds=2, folder=tmp_path,
        most_streams=3, scale=0.01, drift_chunks=3, sampler=Sampler(steps=1),
    )  # fmt: skip


def run(measurements, tmp_path, *, seconds=1e9):
    record = Record("gpu", tmp_path / "gpu.json")
    with ProgressLine(StringIO()) as line:
        gpu.run_measurements(context(tmp_path), measurements, record, Budget(seconds), line)
    return read_document(record.path)


def test_every_measurement_of_seconds_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(peaks.SIDES, "cpu", 64)
    monkeypatch.setitem(peaks.COPIED, "cpu", 1 << 16)
    document = run([each for each in MEASUREMENTS if each.name not in SLOW], tmp_path)
    early = {
        name: found
        for name, found in document.items()
        if isinstance(found, dict) and {"refused", "stopped"} & found.keys()
    }
    assert early == {}
    assert document["environment"]["sdpa"].keys() == {"window", "window, masked", "text", "text, masked"}
    assert document["checks"]["right"]
    assert [row["engine"] for row in document["chunk"]["rows"]] == ["eager-mha", "eager-mla", "absorbed"]
    assert all(row["error"] == 0 for row in document["graphs"]["rows"])
    assert [row["form"] for row in document["block"]["rows"]] == ["mha", "mla", "absorbed"]
    for error in (row["error"] for row in document["fp8"]["accumulation"]):
        assert 0.01 < error < 0.1
    assert document["memory"]["allocated"] == {"mha": 3, "mla": 3}
    assert len(document["memory"]["passes"]) == 6
    assert {row["arm"] for row in document["kernels"]["rows"]} >= {"expanded, auto", "expand, auto"}
    shown_in_a_report(tmp_path / "gpu.json")


def shown_in_a_report(path):
    """Each measurement of whole chunks as a table with figures, but for what a CPU refuses."""
    document = read_results(path)
    text = markdown([(document, None)])
    for title in ("what each item gains", "frames per second by window and batch", "chunks in fp8", "kernels",
                  "frames per second in fp8", "frames per second in fp8 in a longer window",
                  "products in fp8 by the way they add up", "under load",
                  "drift over 3 chunks against float32"):  # fmt: skip
        assert f"**{title}**" in text
    missing = [line for line in text.splitlines() if "not measured yet" in line]
    assert missing == ["| compiled blocks | not measured yet: blocks are compiled on a GPU alone | - | - |"]
    tables = {table.title: table for table in gpu_section(document).tables}
    keys = {row["keys"] for row in document["windows"]["rows"]}
    rates = tables["frames per second by window and batch"].rows
    assert len(keys) == 2 and [row[0] for row in rates] == [
        f"{row['keys']:,}, {row['batch']} fp32" for row in document["windows"]["rows"]
    ]
    drifts = {row[0]: row[3] for row in tables["drift over 3 chunks against float32"].rows}
    assert drifts == {name: f"{error:.1e}" for name, error in document["drift"]["worst"].items()}
    parts = next(table for title, table in tables.items() if title.startswith("one chunk by part"))
    shown, whole = sum(float(row[1]) for row in parts.rows), document["profile"]["device_ms"]
    assert shown == pytest.approx(whole, rel=0.02, abs=0.05)
    assert [name for name in tables if name.startswith("measurements without")] == []


def test_what_no_gpu_has_measured_says_so_and_how_it_would_be():
    tables = gpu_section(
        {"kind": "gpu", "fp8": {"products": {}}, "drift": {"refused": "it was too hot"}}
    ).tables
    said = {table.title: table.rows[0][0] for table in tables}
    assert said["what each item gains"] == "not measured yet: vmla-bench gpu --stages items"
    assert said["chunks in fp8"] == "not measured yet: vmla-bench gpu --stages fp8"
    assert said["drift over 20 chunks against float32"] == "not measured yet: it was too hot"
    assert all(len(row) == len(table.headings) for table in tables for row in table.rows)


def test_a_measurement_that_fails_costs_no_other(tmp_path):
    def broken(_):
        yield {"rows": [1]}
        yield {"rows": [2], "also": 3}
        raise RuntimeError("CUDA error: it is hot\nand more")

    def broken_at_once(_):
        raise UserError("no such thing here")
        yield

    measurements = [
        Measurement(name="one", seconds=1, run=broken),
        Measurement(name="two", seconds=1, run=lambda _: iter([{"found": 7}])),
        Measurement(name="three", seconds=1, run=broken_at_once),
        Measurement(name="four", seconds=1e12, run=broken),
    ]
    document = run(measurements, tmp_path)
    assert document["one"]["stopped"] == "RuntimeError: CUDA error: it is hot"
    assert (document["one"]["rows"], document["one"]["also"]) == ([1, 2], 3)
    assert document["two"]["found"] == 7
    assert document["three"]["refused"] == "no such thing here"
    assert "--minutes" in document["four"]["refused"]


def test_every_row_is_on_disk_before_the_next_is_begun(tmp_path):
    seen = []

    def measure(_):
        for number in range(3):
            yield {"rows": [number]}
            seen.append(read_document(tmp_path / "gpu.json")["one"]["rows"])

    run([Measurement(name="one", seconds=1, run=measure)], tmp_path)
    assert seen == [[0], [0, 1], [0, 1, 2]]


def test_a_measurement_that_overruns_is_stopped_even_within_a_row_and_keeps_its_rows(tmp_path):
    def slow(_):
        yield {"rows": [1]}
        yield {"rows": [failing(lambda: time.sleep(60))]}

    measurements = [
        Measurement(name="one", seconds=0.2, run=slow),
        Measurement(name="two", seconds=0.2, run=lambda _: iter([{"found": 7}])),
    ]
    began = time.monotonic()
    document = run(measurements, tmp_path, seconds=0.4)
    assert time.monotonic() - began < 10
    assert document["one"]["rows"] == [1] and "its share" in document["one"]["stopped"]
    assert document["two"]["found"] == 7


def test_where_more_time_is_allowed_than_asked_for_shares_grow(tmp_path):
    def slow(_):
        time.sleep(0.2)
        yield {"found": 7}

    document = run([Measurement(name="one", seconds=0.05, run=slow)], tmp_path, seconds=5)
    assert document["one"]["found"] == 7


def test_an_end_of_time_that_is_swallowed_comes_again(monkeypatch):
    monkeypatch.setattr(time_budget, "AGAIN", 0.1)
    with pytest.raises(Overrun), time_limit(0.05):
        try:
            time.sleep(10)
        except BaseException:  # noqa: BLE001 - as code that is not ours might
            time.sleep(10)
    time.sleep(0.2)  # nothing comes after the end


def test_what_matters_comes_first_and_fits_with_the_chunks_of_the_tables():
    names = [each.name for each in MEASUREMENTS]
    assert names[:2] == ["environment", "profile"] and names[-1] == "tests"
    assert max(names.index("aoti"), names.index("fp8")) < names.index("checks")
    wanted = MEASUREMENTS[: names.index("aoti") + 1]
    assert sum(each.seconds for each in wanted) <= 8 * 60


def test_a_steady_chunk_is_the_rollouts_own_in_a_full_window(monkeypatch):
    """With graphs and without, which a CPU makes of the same functions."""
    captures = []

    def captured(function, *_):
        captures.append(function)
        return function

    monkeypatch.setattr("runtime.rollout.graphs.captured", captured)
    model = random_model(named_config("debug"))
    engine = EagerEngine(model, RandomText(model.config), device=torch.device("cpu"), dtype=torch.float32)
    with_graphs, without = (steady(engine, Sampler(steps=2), batch=2, graphs=on) for on in (True, False))
    assert len(captures) == 2
    videos = Rollout(engine, FixedPrompts(PROMPT, PROMPT), Sampler(steps=2), seeds=[0, 1])
    videos.buffers.cache.normal_(generator=torch.Generator().manual_seed(0))
    videos.number, videos.frame = filling(model.config), 6
    for _ in range(4):
        wanted = videos.denoise()
        assert videos.buffers.held == len(videos.buffers.slot_index)
        videos.update_cache()
        if videos.number > filling(model.config) + 2:
            assert torch.equal(with_graphs(), wanted) and torch.equal(without(), wanted)


def test_without_a_gpu_it_says_so_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = CliRunner().invoke(vmla_bench, ["gpu"])
    assert done.exit_code == 2
    assert "no CUDA device" in done.output and len(done.output.strip().splitlines()) == 1
    unknown = CliRunner().invoke(vmla_bench, ["gpu", "--stages", "steam"])
    assert unknown.exit_code == 2 and "no such stage: steam" in unknown.output


def needed(names):
    """The distributions called `names` and all that they require here."""
    found, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for line in required:
            if "extra ==" not in line:
                left.append(line.split(";")[0].split("[")[0].strip(" ()").split("=")[0].split("<")[0]
                            .split(">")[0].split("!")[0].split("~")[0].strip())  # fmt: skip
    return found


def test_it_runs_with_no_other_package_than_a_bare_gpu_machine_has(tmp_path):
    allowed = needed(ALLOWED)
    owners = metadata.packages_distributions()
    blocked = sorted(
        top for top, names in owners.items()
        if not {name.lower().replace("_", "-") for name in names} & allowed
        and top not in ("bench", "runtime", "export", "vmla", "plugins", "videomla", "pip", "_distutils_hack")
    )  # fmt: skip
    assert {"transformers", "av", "diffusers", "onnx"} <= set(blocked)
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from io import StringIO
from pathlib import Path
import torch
from bench.gpu import run as gpu
from bench.gpu.context import Context
from bench.harness import peaks
from bench.cli import main
from bench.harness.time_budget import Budget
from bench.harness.document import Record
from vmla.config import named_config
from vmla.scheduler import Sampler
from vmla.cli.progress import ProgressLine
peaks.SIDES["cpu"], peaks.COPIED["cpu"] = 64, 1 << 16
context = Context(config=named_config("debug"), name="debug", device=torch.device("cpu"), rounds=2,
                             folder=Path({str(tmp_path)!r}), most_streams=2, scale=0.01,
                             sampler=Sampler(steps=1))
record = Record("gpu", Path({str(tmp_path)!r}) / "gpu.json")
measurements = [gpu.BY_NAME[name] for name in ("environment", "profile", "checks", "chunk", "windows")]
with ProgressLine(StringIO()) as line:
    gpu.run_measurements(context, measurements, record, Budget(1e9), line)
assert "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = read_document(tmp_path / "gpu.json")
    assert all(
        "refused" not in document[name] for name in ("environment", "profile", "checks", "chunk", "windows")
    )
