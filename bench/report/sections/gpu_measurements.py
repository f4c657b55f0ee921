"""Tables of whole chunks' results from `vmla-bench gpu`, for reports and for documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.report.elements.engines_table import or_dash
from bench.report.elements.table import Table

Document = dict[str, Any]
RATES = ("denoiser_fps", "with_clean_pass_fps", "frames_out_fps")
SHOWN = 12
"""Kernels of a profile, those that take the most time first."""
CLOCKS = {"sm_mhz": "MHz", "memory_mhz": "MHz of memory", "watts": "W", "celsius": "degrees Celsius"}


def not_measured(measurement: str, why: str | None = None) -> str:
    """The text in place of missing figures: the reason, or the command that measures them."""
    return f"not measured yet: {why or f'vmla-bench gpu --stages {measurement}'}"


def profile_tables(document: Document) -> list[Table]:
    """Where the time of one chunk goes: by part with the gaps, by kernel, and the clocks meanwhile."""
    found = document.get("profile") or {}
    headings = ["part", "ms", "of the chunk"]
    if not (whole := found.get("device_ms")):
        return [_empty("one chunk by part", headings, "profile", found)]
    idle = found.get("gaps") or {"count": 0, "ms": 0.0}
    parts = {**found.get("parts", {}), f"gaps ({idle['count']:,})": idle["ms"]}
    by_part = [[name, f"{ms:.2f}", f"{ms / whole:.0%}"] for name, ms in parts.items()]
    by_kernel = [
        [row["kernel"], row["part"], f"{row['count']:,}", f"{row['ms']:.2f}"]
        for row in found.get("kernels", [])[:SHOWN]
    ]
    title = f"one chunk by part: {whole:.1f} ms, {found.get('launched_kernels', 0):,} kernels"
    return [
        Table(title=title, headings=headings, rows=by_part),
        Table(title="kernels", headings=["kernel", "part", "times", "ms"], rows=by_kernel),
        Table(title="under load", headings=["", "least", "median", "most"], rows=_clocks(found)),
    ]


def _clocks(found: dict[str, Any]) -> list[list[str]]:
    """The clocks' readings during the measurement, and whether chunks grew slower."""
    told = found.get("clocks") or {}
    rows = [
        [unit, *(f"{told[name][which]:,.0f}" for which in ("least", "median", "most"))]
        for name, unit in CLOCKS.items()
        if told.get(name)
    ]
    if not rows:
        rows = [["clocks", told.get("refused") or "not told here", "-", "-"]]
    if run := found.get("sustained"):
        first, last = run["first_tenth_ms"], run["last_tenth_ms"]
        rows.append(["ms a chunk, first and last tenth", f"{first:.1f}", "-", f"{last:.1f}"])
    return rows


def items_table(document: Document) -> Table:
    """Each item's speed-up: the time of a chunk without it over that with it."""
    return _rows_table(
        document, "items", "what each item gains", ["item", "ms with", "ms without", "without over with"],
        lambda row: [
            f"{row['with_ms']:.1f}", f"{row['without_ms']:.1f}",
            f"{row['time_without_over_with']:.3f} ± {row['spread']:.3f}",
        ],
    )  # fmt: skip


def windows_table(document: Document) -> Table:
    """Three kinds of frames per second by window and batch."""
    headings = ["keys, videos", "denoiser, frames/s", "with clean pass", "frames out"]
    return _rows_table(document, "windows", "frames per second by window and batch", headings, _rates)


def _rates(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.1f}" for name in RATES]


def fp8_tables(document: Document) -> list[Table]:
    """Chunks in float8 over those without, its rates, and both ways to add up in a product."""
    found = document.get("fp8") or {}
    chunks = _rows_table(
        document, "fp8", "chunks in fp8", ["engine", "ms", "ms without", "times as fast", "error of a pass"],
        lambda row: [
            f"{row['median_ms']:.1f}", f"{row['wide_median_ms']:.1f}",
            f"{1 / row['time_over_wide']:.3f} ± {row['spread'] / row['time_over_wide'] ** 2:.3f}",
            f"{row['error_velocity']:.1e}",
        ],
    )  # fmt: skip
    rates = found.get("rates") or {"refused": found.get("refused") or "vmla-bench gpu --stages fp8"}
    cells = [not_measured("fp8", rates["refused"]), "-", "-"] if "refused" in rates else _rates(rates)
    headings = ["", "denoiser, frames/s", "with clean pass", "frames out"]
    return [
        chunks,
        Table(title="frames per second in fp8", headings=headings, rows=[["fp8", *cells]]),
        _rows_table(
            document,
            "fp8_long",
            "frames per second in fp8 in a longer window",
            ["keys, videos", *headings[1:]],
            _rates,
        ),
        _accumulation(found),
    ]


def _accumulation(found: dict[str, Any]) -> Table:
    """Each product of a layer with fast accumulation and without: rate and error."""
    by_product: dict[str, dict[bool, dict[str, Any]]] = {}
    for row in found.get("accumulation", []):
        by_product.setdefault(row["product"], {})[row["fast"]] = row
    headings = ["product", "TFLOP/s, fast", "error", "TFLOP/s, exact", "error"]
    title = "products in fp8 by the way they add up"
    if not by_product:
        return _empty(title, headings, "fp8", found)
    rows = [
        [name, *(cell for fast in (True, False) for cell in _rate_and_error(ways.get(fast)))]
        for name, ways in by_product.items()
    ]
    return Table(title=title, headings=headings, rows=rows)


def _rate_and_error(row: dict[str, Any] | None) -> list[str]:
    return ["-", "-"] if row is None else [f"{row['per_second'] / 1e12:.3g}", f"{row['error']:.1e}"]


def drift_table(document: Document) -> Table:
    """How far rollouts come apart from float32: the first chunk, the last, and the worst of all."""
    found = document.get("drift") or {}
    rows, worst = found.get("rows", []), found.get("worst", {})
    headings = ["engine", "error, first chunk", "last chunk", "worst chunk"]
    title = f"drift over {len(rows) or 20} chunks against float32"
    if not rows or not worst:
        return _empty(title, headings, "drift", found)
    shown = [
        [name, *(or_dash(row.get(name), "{:.1e}") for row in (rows[0], rows[-1])), f"{error:.1e}"]
        for name, error in worst.items()
    ]
    return Table(title=title, headings=headings, rows=shown)


def _rows_table(
    document: Document, measurement: str, title: str, headings: list[str],
    cells: Callable[[dict[str, Any]], list[str]],
) -> Table:  # fmt: skip
    """The rows of a measurement, refusals with their reason; without rows, the command that makes them."""
    found = document.get(measurement) or {}
    if not found.get("rows"):
        return _empty(title, headings, measurement, found)
    missing = ["-"] * (len(headings) - 2)
    rows = [
        [
            _name(row),
            *([not_measured(measurement, row["refused"]), *missing] if "refused" in row else cells(row)),
        ]
        for row in found["rows"]
    ]
    if why := found.get("stopped"):
        rows.append(["the others", not_measured(measurement, why), *missing])
    return Table(title=title, headings=headings, rows=rows)


def _name(row: dict[str, Any]) -> str:
    if "keys" in row:
        return f"{row['keys']:,}, {row['batch']} {row['precision']}"
    return str(row.get("item") or row.get("engine") or "")


def _empty(title: str, headings: list[str], measurement: str, found: dict[str, Any]) -> Table:
    """A table whose one row says that nothing was measured, and why or by which command it would be."""
    why = not_measured(measurement, found.get("refused") or found.get("stopped"))
    return Table(title=title, headings=headings, rows=[[why, *["-"] * (len(headings) - 1)]])
