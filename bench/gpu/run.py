"""Everything that a machine with a GPU should measure, most valuable first, each stage saved as it ends.

    vmla-bench gpu

Needs torch, numpy, safetensors, click and rich, and nothing else: no network, no TensorRT, no video library.
A stage is begun only if the time that it may take is left; one that fails is on record with its reason, and
the next goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from bench.gpu.stages import STAGES, Context, GpuStage
from bench.harness.document import Record
from bench.harness.engine_arms import failing
from bench.harness.time_budget import Budget
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.config import WINDOWS, model_preset


def run_stages(
    context: Context, stages: list[GpuStage], record: Record, budget: Budget, line: ProgressLine
) -> None:
    """Run `stages` in order and save each under its name; what earlier ones found is in the context."""
    for number, stage in enumerate(stages):
        if budget.left < stage.seconds:
            record.save(**{stage.name: {"refused": "no time was left; allow more with --minutes"}})
            continue
        line.show(f"gpu: {stage.name}, {number + 1} of {len(stages)}, {budget.left:.0f} s left")
        before = budget.left
        found, refusal = failing(lambda stage=stage: stage.run(context))  # type: ignore[misc]
        took = {"stage_seconds": before - budget.left}
        record.save(**{stage.name: {"refused": refusal, **took} if refusal else {**found, **took}})
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def choose_stages(names: str | None) -> list[GpuStage]:
    """The stages of comma-separated names; all if none is named.

    Raises:
        UserError: for a name that does not exist.
    """
    by_name = {stage.name: stage for stage in STAGES}
    if names is None:
        return list(STAGES)
    for name in (wanted := [name.strip() for name in names.split(",")]):
        if name not in by_name:
            raise UserError(f"no such stage: {name}; there are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


@click.command("gpu", cls=OneLineCommand)
@click.option("--shape", default="wan-1.3b", show_default=True, help="Named shape, with random weights.")
@click.option("--window", type=click.Choice(list(WINDOWS)), default="total-6", show_default=True,
              help="Reading of the paper's window; total-6 has 9,360 keys.")  # fmt: skip
@click.option("--stages", help="Comma-separated names (default: all).")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=9.0, show_default=True,
              help="Time limit: no stage is begun that might not end by then.")  # fmt: skip
@click.option(
    "--rounds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Number of rounds of four calls each.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/gpu.json).")  # fmt: skip
def main(
    shape: str, window: str, stages: str | None, minutes: float, rounds: int, output: Path | None
) -> None:
    """Measure a GPU: peaks, kernels, a block, chunks, graphs, fp8, memory."""
    chosen, config, budget = choose_stages(stages), model_preset(shape, window=window), Budget(60 * minutes)
    if not torch.cuda.is_available():
        raise UserError("no CUDA device here; run this on a machine with a GPU")
    device = torch.device("cuda")
    record = Record("gpu", output, device=device)
    context = Context(
        config=config, name=shape, device=device, rounds=rounds, folder=Path("build/engines"),
        save=record.save,
    )  # fmt: skip
    with ProgressLine(sys.stderr) as line:
        run_stages(context, chosen, record, budget, line)
    failed = {
        stage.name: record.document[stage.name]["refused"]
        for stage in chosen
        if "refused" in record.document[stage.name]
    }
    record.finish(stages=[s.name for s in chosen if s.name not in failed], refused=failed)


if __name__ == "__main__":
    main()
