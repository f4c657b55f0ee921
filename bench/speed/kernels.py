"""The attention kernels against PyTorch's own attention: `python -m bench.speed.kernels`.

On a GPU: the published shape, bfloat16 and float8; TFLOP/s, the share of this machine's own measured
matrix peak, and the ratio to bare SDPA in the same run. On a CPU: a small shape, and what the
operator costs over bare SDPA. The error against the reference stands beside every figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from bench.harness.document import Record
from bench.harness.paired_timing import Clock, paired
from bench.harness.peaks import clock_for
from bench.speed.attention_arms import (
    AttentionArm,
    RotatingInputs,
    Shape,
    absorbed,
    bare_sdpa,
    expanded,
    expansion,
    in_waves,
    split,
)
from plugins import sdpa
from plugins.checks import FLOAT8
from plugins.triton.split_kv import TIMED
from vmla.cli.command import OneLineCommand
from vmla.cli.options.device import device_option, say_device

PUBLISHED = Shape(batch=1, heads=12, queries=4680, keys=9360, nope=96, rotary=32, value=128, content=192)
WINDOWS = (9360, 10920, 32760)
"""Three readings of the paper's window, in keys (6, 7 and 21 latent frames of 1,560 tokens)."""
SMALL = Shape(batch=1, heads=4, queries=192, keys=1344, nope=48, rotary=16, value=64, content=32)
"""The shape that a CPU is timed on: the head sizes of `sprites`, a chunk of three frames and a window of 21,
of 64 tokens each."""
PEAK_SIZE = 8192
"""Side of the square matrices whose product gives a GPU's peak: large enough to keep all of its units
busy."""
MOST_OVERHEAD = 1.05
"""The operator's time over bare SDPA's on a CPU, at most."""


@click.command("kernels", cls=OneLineCommand)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/kernels.json).")  # fmt: skip
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    help="Number of rounds of four calls each.",
)
@device_option(kinds=("cpu", "cuda"))
def main(output: Path | None, rounds: int, device: str) -> None:
    """Time the attention kernels and write every sample to a JSON file."""
    where = say_device(device)
    clock, record = clock_for(where), Record("kernels", output, device=where)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        peaks = _peaks(where, clock, rounds)
        for group in groups(where, _shapes(where)):
            rows += measured(group, clock, rounds, peaks)
            record.save(peaks_tflops=peaks, rows=rows)
    Console(width=140).print(_table(rows))
    record.finish(**_summary(rows, where))


def _shapes(device: torch.device) -> list[Shape]:
    if device.type == "cpu":
        return [SMALL]
    return [replace(PUBLISHED, batch=batch, keys=keys) for batch in (1, 2) for keys in WINDOWS]


def groups(
    device: torch.device, shapes: list[Shape]
) -> Iterator[tuple[RotatingInputs, list[AttentionArm], AttentionArm]]:
    """Inputs of each shape and type, the arms to be timed on them, and their baseline."""
    for shape in shapes:
        if device.type == "cpu":
            inputs = RotatingInputs(shape, dtype=torch.float32, device=device)
            arms = [expanded(inputs, "auto"), absorbed(inputs, "auto"), expansion(inputs, "auto")]
            yield inputs, arms, bare_sdpa(inputs)
            continue
        wide = RotatingInputs(shape, dtype=torch.bfloat16, device=device)
        baseline = bare_sdpa(wide)
        arms = [expanded(wide, "sdpa"), expanded(wide, "triton")]
        arms += [absorbed(wide, "triton"), expansion(wide, "sdpa"), expansion(wide, "triton")]
        arms += [split(wide, count) for count in TIMED]
        arms += [arm for count in TIMED if (arm := in_waves(wide, count)) is not None]
        yield wide, arms, baseline
        narrow = RotatingInputs(shape, dtype=FLOAT8, device=device)
        yield narrow, [expanded(narrow, "triton"), absorbed(narrow, "triton")], baseline


def measured(
    group: tuple[RotatingInputs, list[AttentionArm], AttentionArm],
    clock: Clock,
    rounds: int,
    peaks: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """One row for each arm, the baseline's samples beside its own."""
    inputs, arms, baseline = group
    dtype = str(inputs.dtype).removeprefix("torch.")
    for arm in arms:
        pair = paired(baseline.call, arm.call, clock, rounds=rounds)
        rate = arm.flops / statistics.median(pair.other) / 1e9
        yield {
            "arm": arm.name,
            "dtype": dtype,
            "shape": asdict(inputs.shape),
            "sdpa_backend": sdpa.taken(inputs.query[0], inputs.keys[0], inputs.values[0])
            if inputs.dtype != FLOAT8
            else None,
            "median_ms": statistics.median(pair.other),
            "baseline_median_ms": statistics.median(pair.baseline),
            "tflops": rate,
            "share_of_peak": rate / peaks[dtype] if dtype in peaks else None,
            "time_over_sdpa": pair.ratio,
            "best_time_over_sdpa": pair.best_ratio,
            "error": arm.error(),
            "samples_ms": pair.other,
            "baseline_samples_ms": pair.baseline,
        }


def _peaks(device: torch.device, clock: Clock, rounds: int) -> dict[str, float]:
    """Rates of large matrix products on this machine, in TFLOP/s by type."""
    size = PEAK_SIZE if device.type == "cuda" else 1024
    wide = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(wide) for _ in range(2))
    peaks = {str(wide).removeprefix("torch."): _rate(clock, lambda: a @ b, size, rounds)}
    if device.type == "cuda":
        x, y = a.to(FLOAT8), b.to(FLOAT8).t()
        one = torch.ones((), device=device)
        product = lambda: torch._scaled_mm(x, y, one, one, out_dtype=torch.bfloat16)  # noqa: E731
        peaks["float8_e4m3fn"] = _rate(clock, product, size, rounds)
    return peaks


def _rate(clock: Clock, product: Any, size: int, rounds: int) -> float:
    for _ in range(3):  # not timed: the library chooses and loads its kernel
        product()
    return 2 * size**3 / statistics.median(clock.time(product) for _ in range(rounds)) / 1e9


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="attention of one layer; time over bare SDPA in the same run")
    for heading in ("arm", "type", "batch", "keys", "ms", "TFLOP/s", "of peak", "time / SDPA", "error"):
        table.add_column(heading, justify="left" if heading in ("arm", "type") else "right")
    for row in rows:
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        table.add_row(
            row["arm"], row["dtype"], str(row["shape"]["batch"]), str(row["shape"]["keys"]),
            f"{row['median_ms']:.3f}", f"{row['tflops']:.3g}", share, f"{row['time_over_sdpa']:.3f}",
            f"{row['error']:.1e}",
        )  # fmt: skip
    return table


def _summary(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The figures that are claimed."""
    largest = max(row["error"] for row in rows)
    if device.type == "cpu":
        overhead = next(row for row in rows if row["arm"] == "expanded, auto")
        return {
            "operator_over_sdpa": round(overhead["time_over_sdpa"], 4),
            "operator_over_sdpa_best": round(overhead["best_time_over_sdpa"], 4),
            "limit": MOST_OVERHEAD,
            "largest_error": largest,
        }
    best = {}
    for row in rows:
        name = f"{row['arm']} {row['dtype']} b{row['shape']['batch']} k{row['shape']['keys']}"
        best[name] = round(row["tflops"], 1)
    return {"tflops": best, "largest_error": largest}


if __name__ == "__main__":
    main()
