"""`vmla-run`: a prompt becomes a video."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from export.manifest import ENGINES
from vmla.command import OneLineCommand

EAGER = Path("eager")
"""Asked for as an engine: the model itself."""


@click.command(cls=OneLineCommand)
@click.option("--prompt", required=True, help="What the video shows.")
@click.option("--minutes", type=float, help="Length of the video.")
@click.option("--seconds", type=float, help="Length of the video; 10 if no length is given.")
@click.option("--chunks", type=click.IntRange(min=1), help="Length of the video in chunks.")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="An .mp4 file, a folder for pictures, or null.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same video.")
@click.option("--checkpoint",
              help="A checkpoint folder, or a shipped model; the engine's own, or else sprites.")  # fmt: skip
@click.option("--engine", type=click.Path(path_type=Path),
              help="A folder of vmla-export, or eager; what fits in ./engines if not given.")  # fmt: skip
@click.option("--layout", type=click.Choice(["mla", "mha"]), help="Refuse a checkpoint of the other layout.")
@click.option("--steps", type=int, help="Denoising steps; the checkpoint's own number if not given.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              show_default=True, help="What the model computes in.")  # fmt: skip
@click.option("--scale", type=click.IntRange(1, 16),
              help="Enlarge frames; to at least 256 pixels if not given.")  # fmt: skip
@click.option("--events", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a JSON line per chunk.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def main(
    prompt: str,
    minutes: float | None,
    seconds: float | None,
    chunks: int | None,
    output: Path | None,
    seed: int,
    checkpoint: str | None,
    engine: Path | None,
    layout: str | None,
    steps: int | None,
    device: str,
    dtype: str,
    scale: int | None,
    events: Path | None,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Make a video of what PROMPT says, of any length, written while it is made."""
    from runtime.job import prepare
    from runtime.output import NOWHERE, check_output, choose_scale, clear_output, open_sink
    from runtime.produce import produce, record, stopping_on_interrupt
    from runtime.sidecar import describe_job
    from runtime.telemetry import JsonLines, LineTelemetry, Several, Telemetry
    from vmla.progress import ProgressLine
    from vmla.world.caption import warning_for

    job, frames = prepare(
        prompt, checkpoint, layout=layout, minutes=minutes, seconds=seconds, chunks=chunks, seed=seed,
        steps=steps, device=device, dtype=dtype, engine=None if engine == EAGER else engine,
        engines=ENGINES if engine is None else None,
    )  # fmt: skip
    plan = job.plan()
    if dry_run:
        click.echo("\n".join([job.engine_line(), *plan.lines()]))
        return
    if output is None:
        raise click.UsageError("give -o, for example: -o video.mp4")
    check_output(output, overwrite=overwrite)
    factor = choose_scale(plan.height, scale)
    sink = open_sink(output, scale=factor)
    if job.checkpoint.index.get("trained_on") == "sprites" and (warning := warning_for(prompt)):
        click.echo(f"warning: {warning}", err=True)
    with ExitStack() as stack:
        stop = stack.enter_context(stopping_on_interrupt())
        line = stack.enter_context(ProgressLine(sys.stderr))
        listeners: list[Telemetry] = [LineTelemetry(line, prompt)]
        if events is not None:
            listeners.append(stack.enter_context(JsonLines(events)))
        clear_output(output)
        outcome = produce(job, sink, Several(listeners), frames=frames, stop=stop)
    if output != NOWHERE:
        record(output, describe_job(job, frames=frames, scale=factor), outcome)
    click.echo(job.engine_line())
    rate = outcome.frames / outcome.seconds
    click.echo(f"{output}: {outcome.frames} frames in {outcome.seconds:.1f} s, {rate:.0f} per second")
    if not outcome.complete:
        sys.exit(130)
