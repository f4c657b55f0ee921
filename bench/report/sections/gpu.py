"""The section of one run of `vmla-bench gpu`."""

from __future__ import annotations

from typing import Any

from bench.report.elements.bars import Bars
from bench.report.elements.table import Section, Table
from bench.report.sections.gpu_measurements import (
    drift_table,
    fp8_tables,
    items_table,
    profile_tables,
    windows_table,
)
from bench.report.sections.speed import FORMS


def gpu_section(document: dict[str, Any]) -> Section:
    """The measurements: whole chunks as tables, engines and graphs as bars, failures as a table."""
    tables = [
        *profile_tables(document), items_table(document), windows_table(document), *fp8_tables(document),
        drift_table(document),
    ]  # fmt: skip
    if products := (document.get("peaks") or {}).get("products"):
        rates = [[name, f"{rate['per_second'] / 1e12:.1f}"] for name, rate in products.items()]
        tables.append(Table(title="products of a layer", headings=["product", "TFLOP/s"], rows=rates))
    bars, failed = _engines(document)
    for name, found in document.items():
        if isinstance(found, dict):
            failed += [
                [name, found[why]] for why in ("refused", "stopped") if isinstance(found.get(why), str)
            ]
    if failed:
        tables.insert(
            0,
            Table(
                title="measurements without figures, or cut short",
                headings=["measurement", "why"],
                rows=failed,
            ),
        )
    plot = Bars(title="frames per second", values=bars, by_engine=True)
    return Section(tables=tables, plots=[plot] if bars else [])


def _engines(document: dict[str, Any]) -> tuple[list[tuple[str, float, float | None]], list[list[str]]]:
    """Rates of the engines and of the graphs, and the engines that have none, with their reasons."""
    bars: list[tuple[str, float, float | None]] = []
    failed = []
    for name in ("chunk", "compile", "aoti"):
        for row in document.get(name, {}).get("rows", []):
            called = f"{row['engine']} {row['precision']}"
            if "refused" in row:
                failed.append([called, row["refused"]])
            else:
                bars.append((called, row["frames_per_second"], None))
    for row in document.get("graphs", {}).get("rows", []):
        bars.append((f"graph, {FORMS[row['layout']]}", row["frames_per_second"], None))
    return bars, failed
