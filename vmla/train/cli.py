"""`vmla-train`: run a recipe, pack its result into a checkpoint folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmla.command import OneLineErrors

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(cls=OneLineErrors)
def main() -> None:
    """Train small VideoMLA models on endless captioned videos rendered by formula."""


@main.command()
@click.argument("recipe")
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the run; run again to resume.")
@click.option("--until", type=click.Choice(["codec", "text", "latents", "denoiser"]), default="denoiser",
              help="The last stage to train.")  # fmt: skip
@click.option("--stop-after", type=click.IntRange(min=1), help="Stop after this many more steps of a stage.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores if not given.")
def run(recipe: str, output: Path, until: str, stop_after: int | None, threads: int | None) -> None:
    """Train RECIPE (debug or sprites), stage after stage; Ctrl-C stops it, the same command resumes."""
    import torch

    from vmla.progress import ProgressLine
    from vmla.train.recipes import training_recipe
    from vmla.train.run import Run

    if threads is not None:
        torch.set_num_threads(threads)
    with ProgressLine(sys.stderr) as line:
        Run(training_recipe(recipe), output, line.show, stop_after=stop_after).until(until)


@main.command()
def recipes() -> None:
    """List the recipes, with their sizes."""
    from vmla.train.recipes import TRAINING_RECIPES

    for recipe in TRAINING_RECIPES.values():
        model = recipe.model
        steps = recipe.denoiser_training.schedule.steps
        click.echo(f"{recipe.name}: width {model.width}, {model.layers} layers, {steps} denoiser steps")


@main.command()
@click.argument("recipe")
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", type=FOLDER, required=True, help="The checkpoint folder to write.")
def pack(recipe: str, folder: Path, output: Path) -> None:
    """Write the finished run of RECIPE in FOLDER as a checkpoint folder."""
    from vmla.train.pack import pack_run
    from vmla.train.recipes import training_recipe

    pack_run(training_recipe(recipe), folder, output, click.echo)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--grades", type=click.Path(path_type=Path), default=Path("bench/results/grades-sprites.json"),
              show_default=True, help="What bench.grades wrote.")  # fmt: skip
@click.option("--grader", type=click.Path(path_type=Path), default=Path("bench/results/grader.json"),
              show_default=True, help="What bench.grader wrote.")  # fmt: skip
def card(folder: Path, grades: Path, grader: Path) -> None:
    """Write the model card of the packed checkpoint in FOLDER from measured results."""
    from vmla.train.card import write_card

    write_card(folder, grades, grader)
