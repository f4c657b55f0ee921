"""Which start of latent attention is best? Each choice of `vmla-train convert`, varied alone.

    vmla-bench conversion mini --from runs/study/mini/mha-0/denoiser/checkpoint \\
        --calibration runs/study/mini/world/latents -o bench/results/conversion-mini.json

Every per-head model is converted with the defaults and with every other value of every choice. The last
clips of the set are held out from conversion and training; on them stand the attention's output error, layer
by layer with the inputs that the per-head model gives it, and the teacher-forcing loss of the whole model, as
converted and after some steps of the recipe's stage `forcing`. All variants of one model meet the same
batches and the same noise. After an interruption the same command resumes; finished trials are in the
document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table as Printed

from bench.harness.document import Record
from bench.report.elements.table import Table
from bench.report.sections.studies import conversion_section
from bench.studies.conversion_trial import CLIPS, ConversionSource, ConversionTrial, ConversionVariant
from bench.studies.study import spread
from vmla.cli.command import OneLineCommand
from vmla.cli.common_options import ThreadCount
from vmla.cli.options.choices import Choice
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.train.data.clips import open_clips
from vmla.train.recipes.from_checkpoint import DISTILLATION_RECIPES, distillation_recipe
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.conversion.spectral import Choices

VALUES: dict[str, tuple[Any, ...]] = {
    "init": ("spectral", "random"),
    "whiten": (True, False),
    "balance": (0.0, 0.5, 1.0),
    "key_weight": (0.5, 1.0, 2.0),
    "stack": ("content", "whole"),
    "gains": ("fold", "drop"),
    "rotary": ("singular", "mean"),
    "biases": ("absorb", "drop"),
    "latent_gains": ("fit", "one"),
}
"""The values of each of `Choices` that are tried; the seed is not varied."""
CLIPS_TRIED = (4, 4 * CLIPS)
"""Numbers of calibration clips that are tried, beside `CLIPS`."""
CALIBRATION = "calibration"
"""Name of the question of calibration inputs, which is none of `Choices`."""
DEFAULT = "the defaults"


def variants(only: tuple[str, ...] = ()) -> list[ConversionVariant]:
    """The defaults, then every other value of the choices in `only`; of all, if it is empty."""
    found, standard = [ConversionVariant(name=DEFAULT)], asdict(Choices())
    for name, values in VALUES.items():
        if not only or name in only:
            changes = [{name: value} for value in values if value != standard[name]]
            found += [
                ConversionVariant(name=_option(name, each[name]), choices=Choices(**each)) for each in changes
            ]
    if not only or CALIBRATION in only:
        found += [ConversionVariant(name=f"--clips {clips}", clips=clips) for clips in CLIPS_TRIED]
        found.append(ConversionVariant(name="noise, no --calibration", noise=True))
    return found


def _option(name: str, value: Any) -> str:
    """The option of `vmla-train convert` for this value."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {value}"


def trials(
    starts: list[ConversionSource],
    chosen: list[ConversionVariant],
    heal: int,
    folder: Path,
    line: ProgressLine,
) -> Iterator[ConversionTrial]:
    """Yield trials model by model, so that a run that ends early has compared all variants."""
    for start in starts:
        for variant in chosen:
            label = f"model {start.seed + 1} of {len(starts)}, {variant.name}"
            place = "-".join(variant.name.replace("-", " ").replace(",", " ").split())
            yield ConversionTrial(
                start=start, variant=variant, heal=heal, folder=folder / str(start.seed) / place,
                report=partial(_show, line, label),
            )  # fmt: skip


def _show(line: ProgressLine, label: str, text: str) -> None:
    line.show(f"{label}: {text}")


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each variant, over its models: all figures, and the loss beside that of the defaults."""
    last = "loss" if rows[0]["healed"] is None else "healed"
    standard = {row["checkpoint"]: row[last] for row in rows if row["variant"] == DEFAULT}
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        errors = [row["output_error"] for row in own]
        found.append({
            "variant": name,
            "models": len(own),
            "energy": {key: spread([row["energy"][key] for row in own]) for key in own[0]["energy"]},
            "output_error": spread([sum(each) / len(each) for each in errors]),
            "worst_layer": spread([max(each) for each in errors]),
            "loss": spread([row["loss"] for row in own]),
            "healed": None if last == "loss" else spread([row["healed"] for row in own]),
            "over_defaults": spread([row[last] - standard[row["checkpoint"]] for row in own]),
        })  # fmt: skip
    return found


@click.command("conversion", cls=OneLineCommand, groups={
    "What is converted": ("checkpoints", "calibration", "heal", "only"),
    "Where": ("runs", "threads", "output"),
})  # fmt: skip
@click.argument("name", type=Choice(DISTILLATION_RECIPES, kind="recipe"))
@click.option("--from", "checkpoints", multiple=True, required=True,
              type=click.Path(path_type=Path, file_okay=False),
              help="Checkpoint with the layout mha; repeat for several.")  # fmt: skip
@click.option(
    "--calibration",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Clips to convert, train and judge with: of vmla-train encode, or a run's latents.",
)
@click.option("--heal", default=100, show_default=True, type=click.IntRange(min=0),
              help="Training steps after each conversion (0: none).")  # fmt: skip
@click.option("--only", type=Choice([*VALUES, CALIBRATION]), multiple=True,
              help="Choice to vary; repeat for several (default: all).")  # fmt: skip
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/conversion"),
              show_default=True, help="Folder that keeps the trials; run again to resume.")  # fmt: skip
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/conversion.json).")  # fmt: skip
def main(
    name: str,
    checkpoints: tuple[Path, ...],
    calibration: Path,
    heal: int,
    only: tuple[str, ...],
    runs: Path,
    threads: int | None,
    output: Path | None,
) -> None:
    """Convert per-head models of a recipe in every way, and compare the converted models."""
    if threads is not None:
        torch.set_num_threads(threads)
    starts, rows = _starts(name, checkpoints, calibration), list[dict[str, Any]]()
    record = Record("conversion", output)
    own = [start.loss(start.source.model()) for start in starts]
    record.save(subject=name, heal=heal, per_head_loss=spread(own))
    with ProgressLine(sys.stderr) as line:
        for trial in trials(starts, variants(only), heal, runs / name, line):
            rows.append(trial.result())
            record.save(rows=rows, compared=compared(rows))
    for table in conversion_section(record.document).tables:
        say(*printed(table).split("\n"))
    last = "healed" if heal else "loss"
    record.finish(losses={one["variant"]: one[last] for one in compared(rows)})


def _starts(name: str, checkpoints: tuple[Path, ...], calibration: Path) -> list[ConversionSource]:
    """The models, each with a seed of its own and all with the same clips."""
    chosen, found = distillation_recipe(name), []
    for seed, folder in enumerate(checkpoints):
        checkpoint = open_checkpoint(folder)
        clips = open_clips(calibration, checkpoint.model_config())
        found.append(ConversionSource.of(checkpoint, clips, chosen, seed))
    return found


def printed(table: Table) -> str:
    """The table as a terminal shows it."""
    drawn = Printed(title=table.title)
    for number, heading in enumerate(table.headings):
        drawn.add_column(heading, justify="right" if number else "left")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(width=160)
    with console.capture() as caught:
        console.print(drawn)
    return caught.get().rstrip()


if __name__ == "__main__":
    main()
