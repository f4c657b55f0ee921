"""Everything that a machine with a GPU should measure, most valuable first, each row saved as it is made.

    python -m bench.gpu.run -o out/gpu.json

Needs torch, triton, numpy, safetensors, click and rich, and nothing else: no installation of this package, no
network, no TensorRT, no video library; a C++ compiler for the measurement `aoti` alone. A measurement that
takes longer than its share of the time is stopped, and one that fails is recorded with its reason; then the
next begins. A folder named after the results file keeps the engines, the profile's trace and compiled code,
so a second run with the same `-o` compiles nothing again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from bench.gpu.arms.items import ITEMS
from bench.gpu.context import Context, Measurement
from bench.gpu.measurements import BY_NAME
from bench.harness.document import Record
from bench.harness.engine_arms import failing
from bench.harness.time_budget import Budget, Overrun, time_limit
from bench.speed.gpu_clocks import Clocks
from plugins.errors import UserError
from runtime.engines.block_compiler import set_inductor_cache
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import Choice, ChoiceList
from vmla.cli.progress import ProgressLine
from vmla.config import MODEL_CONFIGS, WINDOWS, named_config


def run_measurements(
    context: Context, measurements: Sequence[Measurement], record: Record, budget: Budget, line: ProgressLine
) -> None:
    """Run `measurements` in order, and save each piece that one finds at once, under its name.

    A measurement is stopped when its share of the time is over. If more time is allowed than they need
    together, all shares grow by the same factor.
    """
    stretch = max(1.0, budget.seconds / sum(each.seconds for each in measurements))
    for number, measurement in enumerate(measurements):
        share = min(stretch * measurement.seconds, budget.left)
        if share < measurement.seconds / 2:  # too short for a result that is worth its time
            record.save(**{measurement.name: {"refused": "no time was left; allow more with --minutes"}})
            continue
        line.show(f"gpu: {measurement.name}, {number + 1} of {len(measurements)}, {budget.left:.0f} s left")
        run_measurement(context, measurement, record, share)
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def run_measurement(context: Context, measurement: Measurement, record: Record, share: float) -> None:
    """Run one measurement for `share` seconds at most; its clocks, and why it ended early, are on record."""
    found: dict[str, Any] = {}
    began = time.monotonic()
    with Clocks(context.device) as clocks:
        try:
            with time_limit(share):
                _, refusal = failing(lambda: _collect(context, measurement, record, found))
        except Overrun:
            refusal = f"stopped after {share:.0f} s, its share of the time; allow more with --minutes"
    if refusal is not None:
        found["stopped" if found else "refused"] = refusal
    found |= {"stage_seconds": time.monotonic() - began, "clocks": clocks.summary()}
    record.save(**{measurement.name: found})


def _collect(context: Context, measurement: Measurement, record: Record, found: dict[str, Any]) -> None:
    """Add each piece to `found` as it comes, and save it: lists grow, all else is replaced."""
    for piece in measurement.run(context):
        for name, value in piece.items():
            found[name] = [*found.get(name, []), *value] if isinstance(value, list) else value
        record.save(**{measurement.name: found})


def set_compiler_caches(folder: Path) -> None:
    """Let the compilers of this process cache their code in `folder`, unless the user set other folders.

    Environment variables are their only settings for it.
    """
    set_inductor_cache(folder / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


@click.command("gpu", cls=OneLineCommand)
@click.option("--shape", type=Choice(MODEL_CONFIGS), default="wan-1.3b", show_default=True,
              help="Named shape, with random weights.")  # fmt: skip
@click.option("--window", type=Choice(list(WINDOWS)), default="total-6", show_default=True,
              help="Reading of the paper's window; total-6 has 9,360 keys.")  # fmt: skip
@click.option("--stages", type=ChoiceList(BY_NAME), help="Measurements to make (default: all).")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=9.0, show_default=True,
              help="Time limit; the share of each measurement grows with it.")  # fmt: skip
@click.option(
    "--rounds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Number of rounds of four calls each.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write, with a folder of its name beside it for engines, traces and "
              "compiled code (default: build/gpu.json).")  # fmt: skip
def main(
    shape: str, window: str, stages: tuple[str, ...] | None, minutes: float, rounds: int, output: Path | None
) -> None:
    """Measure a GPU: a chunk by kernel, each item's gain, both windows, fp8, AOTInductor, kernels."""
    chosen = [BY_NAME[name] for name in (BY_NAME if stages is None else stages)]
    config, budget = named_config(shape, window=window), Budget(60 * minutes)
    if not torch.cuda.is_available():
        raise UserError("no CUDA device here; run this on a machine with a GPU")
    device = torch.device("cuda")
    record = Record("gpu", output, device=device)
    folder = record.path.with_suffix("")
    record.save(features=[item.name for item in ITEMS])
    set_compiler_caches(folder.absolute())
    context = Context(config=config, name=shape, device=device, rounds=rounds, folder=folder)
    with ProgressLine(sys.stderr) as line:
        run_measurements(context, chosen, record, budget, line)
    early = {
        each.name: found.get("refused") or found["stopped"]
        for each in chosen
        if {"refused", "stopped"} & (found := record.document[each.name]).keys()
    }
    record.finish(stages=[s.name for s in chosen if s.name not in early], refused=early)


if __name__ == "__main__":
    main()
