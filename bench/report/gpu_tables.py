"""The results of `vmla-bench gpu` as the lines of Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.elements.engines_table import or_dash, ratio
from bench.report.elements.table import Table
from bench.report.gpu_files import gpu_documents, lacking, where
from bench.report.sections import gpu_measurements, ladder

Rows = list[dict[str, Any]]


def chunk_table(result: dict[str, Any]) -> list[str]:
    """Whole chunks of Wan's size: engines in turns with the baseline, then a chunk with graphs."""
    baseline = result["chunk"]["baseline"]
    first = {"engine": "A against A", "precision": baseline["precision"], **baseline}
    engines = [first, *(row for name in ("chunk", "compile", "aoti") for row in _rows(result, name))]
    against = f"eager-{baseline['layout']} {baseline['precision']}"
    return [
        f"| engine | frames/s | times {against} | of matrix peak | error | launches per chunk |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['engine']} {row['precision']} | {row['frames_per_second']:.1f} "
            f"| {ratio(row)} | {row['share_of_matrix_peak']:.0%} "
            f"| {or_dash(row.get('error_velocity'), '{:.1e}')} | {row.get('launches_per_chunk', '-')} |"
            for row in engines
        ),
        *(
            f"| {_graphs(row)}, {row['layout']} {baseline['precision']} | {row['frames_per_second']:.1f} | - "
            f"| - | - | {row['launches']} |"
            for row in _rows(result, "graphs")
        ),
    ]


def kernel_table(result: dict[str, Any]) -> list[str]:
    """Attention and expansion of one layer at Wan's size, over the library's attention without a mask."""
    return [
        "| kernel | type | keys | ms | TFLOP/s | time over cuDNN, no mask | error |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['arm']} | {row['dtype']} | {row['shape']['keys']:,} | {row['median_ms']:.3f} "
            f"| {row['tflops']:.0f} | {row['time_over_sdpa']:.2f} | {row['error']:.1e} |"
            for row in _rows(result, "kernels")
        ),
    ]


def training_table(result: dict[str, Any]) -> list[str]:
    """Steps of the stages: time, rate and memory beside the plan."""
    stages = result.get("training", {}).get("rows", [])
    return [
        "| stage | seconds per step | tokens/s | of matrix peak | GiB held at most | GiB planned |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['stage']} | not measured yet: {row['refused']} | - | - | - | - |"
            if "refused" in row
            else f"| {row['stage']} | {_mean(row['steps'], 'seconds'):.2f} "
            f"| {_mean(row['steps'], 'tokens_per_second'):,.0f} | {_mean(row['steps'], 'utilisation'):.0%} "
            f"| {row['peak_bytes'] / 2**30:.1f} | {row['planned']['all'] / 2**30:.1f} |"
            for row in stages
        ),
    ]


def profile_lines(result: dict[str, Any]) -> list[str]:
    """One chunk by part and by kernel, and the clocks under load."""
    return titled(gpu_measurements.profile_tables(result))


def items_lines(result: dict[str, Any]) -> list[str]:
    """The speed-up of each item of a chunk."""
    return titled([gpu_measurements.items_table(result)])


def windows_lines(result: dict[str, Any]) -> list[str]:
    """Three kinds of frames per second by window and batch."""
    return titled([gpu_measurements.windows_table(result)])


def fp8_lines(result: dict[str, Any]) -> list[str]:
    """Chunks in float8, both ways to add up, and drift against float32."""
    return titled([*gpu_measurements.fp8_tables(result), gpu_measurements.drift_table(result)])


def ladder_lines(results: Path) -> list[str]:
    """The ladder from all runs in the folder `results`, with each run that a figure comes from."""
    documents = gpu_documents(results)
    tables, runs = zip(*(make(documents) for make in (ladder.speed_ups, ladder.other_rungs)), strict=True)
    used = [run for run in documents if any(run in each for each in runs)]
    said = [f"{where(run)}: {_lacked(run)} `{run['command']}`" for run in used]
    return [*titled(tables), "", *(line for run in said for line in (run, ""))][:-1]


def _lacked(run: dict[str, Any]) -> str:
    missing = lacking(run)
    if missing is None:
        return "it is not recorded which features the measured code had."
    if not missing:
        return "the measured code had every feature that is there today."
    return f"the measured code lacked {', '.join(missing)}."


def titled(tables: Sequence[Table]) -> list[str]:
    """Tables, each under its title."""
    return [line for table in tables for line in (f"**{table.title}**", "", *table.markdown(), "")][:-1]


def _graphs(row: dict[str, Any]) -> str:
    """The replayed graph: a chunk captured whole in documents before 2026-12, later the rollout's own."""
    return "one graph" if row["launches"] == 1 else "the rollout's graphs"


def _rows(result: dict[str, Any], measurement: str) -> Rows:
    """The rows of `measurement` that have figures."""
    return [row for row in result.get(measurement, {}).get("rows", []) if "refused" not in row]


def _mean(rows: Rows, key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)
