"""The engines of a document as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 170
COLUMNS = (
    "engine", "precision", "frames/s", "times baseline", "p50 ms", "p95", "p99", "first frame s",
    "peak MiB", "GFLOP/s", "of peak", "error", "launches", "reads",
)  # fmt: skip


def engines_table(document: dict[str, Any]) -> str:
    """Rows in the order measured; a ratio within the noise stands in brackets."""
    table = Table(title=f"{document['subject']}: baseline {document['baseline']}")
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if number < 2 else "right")
    refused = []
    for row in document["rows"]:
        if "refused" in row:
            refused.append(f"{row['engine']} {row['precision']}: {row['refused']}")
            continue
        table.add_row(*_cells(row))
    console = Console(width=WIDE)
    with console.capture() as caught:
        console.print(table)
    return "\n".join([caught.get().rstrip(), *refused])


def ratio(row: dict[str, Any]) -> str:
    """How many times as fast as the baseline, with its spread; in brackets if it says nothing."""
    fast = 1 / row["time_over_baseline"]
    said = f"{fast:.2f} ± {fast * row['spread'] / row['time_over_baseline']:.2f}"
    return said if row["differs"] else f"({said})"


def _cells(row: dict[str, Any]) -> list[str]:
    times = row["chunk_ms"]
    peak, share = row.get("peak_bytes"), row["share_of_matrix_peak"]
    return [
        row["engine"], row["precision"], f"{row['frames_per_second']:.1f}", ratio(row),
        *(f"{times[p]:.1f}" for p in ("p50", "p95", "p99")),
        or_dash(row.get("first_frame_seconds"), "{:.2f}"),
        or_dash(None if peak is None else peak / 2**20, "{:.0f}"),
        f"{row['flops_per_second'] / 1e9:.3g}", or_dash(share, "{:.0%}"),
        or_dash(row.get("error_velocity"), "{:.1e}"),
        or_dash(row.get("launches_per_chunk"), "{}"), or_dash(row.get("host_reads_per_chunk"), "{}"),
    ]  # fmt: skip


def or_dash(value: float | None, form: str) -> str:
    """`value` in the format `form`, or a dash if it is unknown."""
    return "-" if value is None else form.format(value)
