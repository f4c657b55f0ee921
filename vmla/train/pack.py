"""A finished run becomes a checkpoint folder, with a record of how it was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vmla.errors import UserError
from vmla.machine import commit, hardware
from vmla.train.log import last_record, mean_speed
from vmla.train.recipes import Recipe
from vmla.train.run import Run
from vmla.weights.files import write_json
from vmla.weights.folder import save_checkpoint

TRAINING = "training.json"
"""The record's file name in a checkpoint folder."""


def pack_run(recipe: Recipe, folder: Path, output: Path, report: Callable[[str], None]) -> None:
    """Write the averaged weights of the run in `folder` to `output`, in float16.

    Raises:
        UserError: if a stage is not finished, or `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another folder")
    stages = {name: _finished(folder, name, steps) for name, steps in recipe.steps().items()}
    run = Run(recipe, folder, report, stop_after=0)
    aside = output.with_name(output.name + ".tmp")
    save_checkpoint(
        aside,
        transformer=run.refine(),
        codec=run.codec(),
        text=run.text(),
        sampler=recipe.sampler,
        trained_on="sprites",
        metadata={"recipe": recipe.name},
    )
    write_json(aside / TRAINING, {
        "recipe": recipe.name,
        "commit": commit(),
        "seed": recipe.denoiser_training.seed,
        "stages": stages,
        "hours": round(sum(stage["seconds"] for stage in stages.values()) / 3600, 2),
        "hardware": hardware(),
        "torch": torch.__version__,
        "settings": asdict(recipe),
    })  # fmt: skip
    aside.rename(output)
    report(f"wrote {output}")


def _finished(folder: Path, name: str, steps: int) -> dict[str, Any]:
    log = folder / f"{name}.jsonl"
    last = last_record(log)
    if last is None or last["step"] < steps:
        done = 0 if last is None else last["step"]
        raise UserError(f"stage {name} in {folder} has made {done} of {steps} steps; run it to its end first")
    return {"steps": steps, "seconds": last["seconds"], "loss": last["loss"], **mean_speed(log)}

