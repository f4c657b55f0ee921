"""The section of one video with its cache in several forms."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.quality.drift import MEASURES
from bench.report.elements.lines import Lines, Points
from bench.report.elements.table import Section, Table

SMOOTHED = 8
"""Chunks of which a curve of times shows the median."""


def caches_section(document: dict[str, Any]) -> Section:
    """Memory, time and differences of each form; bytes and time of a chunk over the video's length."""
    rows = document["rows"]
    window = document["window"]
    title = f"one prompt and seed, a sink of {window['sink']} and a history of {window['history']} frames"
    table = Table(
        title=title,
        headings=["cache", "bytes per token and layer", "kB per video", "frames/s", "times the latent's",
                  "error of a chunk", *(f"drift of {name}" for name in MEASURES)],
        rows=[_row(row) for row in rows],
    )  # fmt: skip
    used = {row["cache"]: [(p["second"], p["bytes"]) for p in row["along"]] for row in rows}
    times = {row["cache"]: _smoothed([(p["second"], p["chunk_ms"]) for p in row["along"]]) for row in rows}
    apart = {row["cache"]: [(p["second"], p["apart"]) for p in row["along"]] for row in rows[1:]}
    x = "seconds of video"
    return Section(tables=[table], plots=[
        Lines(title="the cache in use", x=x, y="bytes", series=used | _unbounded(rows), log=True),
        Lines(title="time of a chunk", x=x, y="ms, of eight chunks the median", series=times, zero=True),
        Lines(title="distance from the video with the latent cache", x=x, y="mean over pixels, of 1",
              series=apart, zero=True),
    ])  # fmt: skip


def _row(row: dict[str, Any]) -> list[str]:
    fast = 1 / row["time_over_latent"]
    speed = f"{fast:.2f} ± {fast * row['spread'] / row['time_over_latent']:.2f}"
    return [
        row["cache"], f"{row['bytes_per_token_and_layer']:,}", f"{row['bytes_per_video'] / 1e3:,.1f}",
        f"{row['frames_per_second']:.0f}", speed if row["differs"] else f"({speed})", f"{row['error']:.1e}",
        *(f"{row['drift'][name]:+.1%}" if name in row["drift"] else "-" for name in MEASURES),
    ]  # fmt: skip


def _unbounded(rows: list[dict[str, Any]]) -> dict[str, Points]:
    """Bytes of a per-head cache that never evicts, from its first chunk on."""
    found = [row["along"] for row in rows if row["cache"].startswith("per head")]
    if not found or not found[0]:
        return {}
    first = found[0][0]
    each = first["bytes"] / first["second"]
    return {"per head, no window": [(p["second"], each * p["second"]) for p in found[0]]}


def _smoothed(points: Points) -> Points:
    """The median of every `SMOOTHED` points; the first, which encodes the prompt, left out."""
    rest = points[1:]
    parts = [rest[at : at + SMOOTHED] for at in range(0, len(rest), SMOOTHED)]
    return [(part[-1][0], median(value for _, value in part)) for part in parts]
