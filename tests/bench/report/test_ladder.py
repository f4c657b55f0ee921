"""The ladder of a GPU's figures: each rung from the newest run that has it, or honestly empty."""

import json

import pytest
from kit.files.results import engine_row

from bench.gpu.arms.items import ITEMS, JOINED
from bench.report import gpu_files
from bench.report.gpu_files import gpu_documents, lacking, newest_with
from bench.report.gpu_tables import ladder_lines
from bench.report.readme import ROOT, TABLES, render
from bench.report.sections.ladder import NOT_MEASURED, OTHERS, SPEED_UPS, other_rungs, speed_ups
from bench.report.summary import summary_table

pytestmark = pytest.mark.cpu

OLD_FEATURES = [item.name for item in ITEMS if JOINED not in (item.name, item.part_of)]


def run(date, gpu="NVIDIA H200", **parts):
    return {
        "kind": "gpu", "date": date, "machine": {"gpu": gpu, "hardware": "x"}, "versions": {"torch": "2"},
        "command": f"vmla-bench gpu --minutes {date}",
        "arguments": {"shape": "wan-1.3b", "window": "total-6", "rounds": 3}, **parts,
    }  # fmt: skip


def chunks(speed=1.0):
    """A per-head chunk of 400 ms launched one by one and 300 in graphs; others are `speed` times as fast."""
    graphs = [
        {"layout": layout, "baseline_samples_ms": [took / speed] * 3, "samples_ms": [1.0]}
        for layout, took in (("mha", 400 * speed), ("mla", 500))
    ]
    rows = [
        engine_row("eager-mha", samples_ms=[300.0] * 3),
        engine_row("eager-mla", samples_ms=[250.0] * 3, time_over_baseline=0.8, differs=True),
    ]
    compiled = engine_row("compile", samples_ms=[200.0 / speed] * 3, time_over_baseline=0.5, differs=True)
    return {"graphs": {"rows": graphs}, "chunk": {"rows": rows}, "compile": {"rows": [compiled]}}


def cells(table):
    return {row[0]: row[3:] for row in table.rows}


def test_a_speed_up_is_over_the_per_head_chunk_of_the_same_run():
    table, used = speed_ups([run("1", **chunks())])
    found = cells(table)
    assert found["latent cache, the model as it is"] == ["0.80", "1.25 ± 0.02", "1"]
    assert found["compiled, in graphs"] == ["2.00", "2.00 ± 0.04", "1"]
    assert found["joined products, in graphs"] == [NOT_MEASURED, NOT_MEASURED, "-"]
    assert [each["date"] for each in used] == ["1"]
    more = {
        "items": {"rows": [{"item": "compiled blocks", "without_ms": 100.0}]},
        "fp8": {"rows": [{"engine": "fp8", "median_ms": 50.0, "time_over_wide": 0.5, "spread": 0.01}]},
    }
    documents = [run("2", **chunks(), **more), run("1", **chunks())]
    found = cells(speed_ups(documents)[0])
    assert found["joined products, in graphs"] == ["4.00", "3.00", "2"]
    assert found["with linear layers in fp8 (the goal counts attention too)"] == ["8.00", "6.00", "2"]
    assert cells(other_rungs(documents)[0])["fp8, times as fast as bfloat16"] == ["2.00 ± 0.04", "2"]


def test_a_rung_without_its_reference_in_the_same_run_stays_empty():
    whole = run("1", **chunks())
    part = run("2", compile=whole["compile"])
    table, used = speed_ups([part, whole])
    assert cells(table)["compiled, in graphs"][-1] == "1"
    assert used == [whole]
    assert cells(speed_ups([part])[0])["compiled, in graphs"] == [NOT_MEASURED, NOT_MEASURED, "-"]


def test_figures_of_another_gpu_fill_no_rung_that_is_not_its_own():
    windows = {"windows": {"rows": [{"keys": 9360, "batch": 1, "with_clean_pass_fps": 140.0}]}}
    found = cells(other_rungs([run("1", gpu="NVIDIA B200", **windows)])[0])
    assert found["frames/s on a B200, 9,360 keys, compiled"] == ["140.0", "1"]
    assert found["frames/s, 9,360 keys, compiled"] == [NOT_MEASURED, "-"]


@pytest.mark.parametrize("other", [{"shape": "debug"}, {"window": "total-9"}])
def test_figures_of_another_model_or_window_fill_no_rung(other):
    document = run("1", **chunks())
    document["arguments"] |= other
    for make in (speed_ups, other_rungs):
        table, used = make([document])
        assert all(NOT_MEASURED in row for row in table.rows) and used == []


def test_without_any_run_every_rung_is_there_and_empty(tmp_path):
    lines = ladder_lines(tmp_path)
    assert sum(NOT_MEASURED in line for line in lines) == len(SPEED_UPS) + len(OTHERS)
    refused = run("1", **{name: {"refused": "it was hot"} for name in ("graphs", "chunk", "kernels", "fp8")})
    refused["windows"] = {"rows": [{"keys": 9360, "batch": 1, "refused": "no memory"}]}
    for make in (speed_ups, other_rungs):
        assert all(NOT_MEASURED in row for row in make([refused])[0].rows)


def test_what_the_measured_code_lacked_is_said_without_the_parts_of_what_it_lacked():
    old = run("1", features=OLD_FEATURES)
    assert lacking(old) == [JOINED]
    assert lacking(run("1", features=[item.name for item in ITEMS])) == []
    one = next(item.name for item in ITEMS if item.part_of == JOINED)
    assert lacking(run("1", features=[item.name for item in ITEMS if item.name != one])) == [one]
    assert lacking(run("1")) is None
    assert {item.part_of for item in ITEMS} - {None} <= {item.name for item in ITEMS}


def test_the_ladder_names_each_run_that_it_uses_and_what_that_lacked(tmp_path):
    (tmp_path / "gpu-wan.json").write_text(json.dumps(run("2026-01-01", features=OLD_FEATURES, **chunks())))
    said = "\n".join(ladder_lines(tmp_path))
    assert "NVIDIA H200, x, torch 2, 2026-01-01: the measured code lacked joined products." in said
    assert "`vmla-bench gpu --minutes 2026-01-01`" in said


def test_one_file_serves_all_tables_and_files_of_earlier_names_serve_for_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.report.readme.RESULTS", tmp_path)
    items = {"items": {"rows": [{"item": "graphs", "with_ms": 1.0, "without_ms": 2.0,
                                 "time_without_over_with": 2.0, "spread": 0.1}]}}  # fmt: skip
    (tmp_path / "gpu-chunks.json").write_text(json.dumps(run("2026-01-01", **items)))
    block = "<!-- results: gpu_items -->\n<!-- end -->\n"
    assert "2026-01-01" in render(block) and "| graphs | 1.0 | 2.0 |" in render(block)
    (tmp_path / "gpu.json").write_text(json.dumps(run("2026-02-02", items={"refused": "no time was left"})))
    assert "2026-01-01" in render(block)
    (tmp_path / "gpu.json").write_text(json.dumps(run("2026-02-02", **items)))
    assert "2026-02-02" in render(block)
    (tmp_path / "gpu-chunks.json").unlink()
    (tmp_path / "gpu.json").write_text(json.dumps(run("2026-02-02", items={"refused": "no time was left"})))
    assert "no time was left" in render(block) and "2026-02-02" in render(block)
    assert {block.file for name, block in TABLES.items() if name.startswith("gpu")} == {gpu_files.NEWEST}


def test_a_run_has_a_measurement_only_with_figures():
    refused = run("2", fp8={"rows": [{"engine": "fp8", "refused": "no"}]}, chunk={"rows": []})
    whole = run("1", fp8={"rows": [{"engine": "fp8"}]}, profile={"device_ms": 1.0})
    assert newest_with([refused, whole], "fp8") is whole and newest_with([refused], "fp8") is None
    assert newest_with([refused, whole], "profile") is whole
    assert newest_with([refused, whole], "chunk") is None


def test_the_summary_says_when_the_gpu_was_measured_what_it_lacked_and_which_option_gives_it():
    results = ROOT / "bench" / "results"
    text = "\n".join(summary_table(results))
    measured = newest_with(gpu_documents(results), "chunk", "compile")
    (when,) = (line for line in text.splitlines() if line.startswith("| measured |"))
    assert measured["date"] in when and all(name in when for name in lacking(measured))
    assert "`--compile`" in text
