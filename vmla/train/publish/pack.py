"""A finished run becomes a checkpoint folder, with a record of how it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from plugins.atomic_files import atomic_folder
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.cli.machine import commit, hardware
from vmla.train.loop.log import last_record, mean_speed
from vmla.train.loop.state import read_state
from vmla.train.publish.record import TRAINING, Begun, StageSettings, read_checked
from vmla.train.recipes.from_scratch import PretrainingRecipe
from vmla.train.run import TrainingRun
from vmla.train.stage import RESULT
from vmla.vae.tiny import TinyCodec
from vmla.weights.checkpoint import INDEX, Checkpoint, open_checkpoint, save_checkpoint
from vmla.weights.formats.files import write_json


def pack_run(recipe: PretrainingRecipe, folder: Path, output: Path, report: Callable[[str], None]) -> None:
    """Write the averaged weights of the run in `folder` to `output`, in float16.

    Raises:
        UserError: if a stage is not finished, or `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another folder")
    stages = {name: _finished(folder, name, steps) for name, steps in recipe.steps().items()}
    run = TrainingRun(recipe, folder, report, stop_after=0)
    with atomic_folder(output) as temporary:
        save_checkpoint(
            temporary,
            transformer=run.refine(),
            codec=run.decoder(),
            text=run.text(),
            sampler=recipe.sampler,
            trained_on=recipe.latents.world,
            metadata={"recipe": recipe.name},
        )
        write_json(temporary / TRAINING, {
            "recipe": recipe.name,
            "commit": commit(),
            "seed": recipe.denoiser_training.seed,
            "stages": stages,
            "hours": round(sum(stage["seconds"] for stage in stages.values()) / 3600, 2),
            "hardware": hardware(),
            "torch": torch.__version__,
            "settings": asdict(recipe),
        })  # fmt: skip
    report(f"wrote {output}")


def pack_stages(start: str, folders: Sequence[Path], output: Path, report: Callable[[str], None]) -> None:
    """Write the models of the last of several finished stages to `output`, in float16.

    Args:
        start: the checkpoint that the first one trained; its record comes first.
        folders: of the stages, in order.
        output: the checkpoint folder to write.
        report: takes a line.

    Raises:
        UserError: if a stage is not finished, the start has no record, or `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another folder")
    record = read_checked(open_checkpoint(start).folder / TRAINING, Begun)
    for folder in folders:
        name, stage = _stage(folder)
        record["stages"][name] = stage
    made = open_checkpoint(folders[-1] / RESULT)
    hours = round(sum(stage["seconds"] for stage in record["stages"].values()) / 3600, 2)
    versions = {"commit": commit(), "hardware": hardware(), "torch": torch.__version__}
    with atomic_folder(output) as temporary:
        save_checkpoint(
            temporary,
            transformer=made.transformer(),
            codec=_tiny(made),
            text=made.text(),
            sampler=made.sampler(),
            trained_on=made.index.get("trained_on"),
            metadata={"recipe": record["recipe"]},
        )
        write_json(temporary / TRAINING, {**record, **versions, "hours": hours})
    report(f"wrote {output}")


def _tiny(checkpoint: Checkpoint) -> TinyCodec:
    """The checkpoint's codec, which must be a `TinyCodec`.

    Raises:
        UserError: if it is Wan's, which nothing here trained.
    """
    codec = checkpoint.codec()
    if not isinstance(codec, TinyCodec):
        raise UserError(f"{checkpoint.folder} has Wan's codec; it is whole as it is, nothing is to be packed")
    return codec


def _stage(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name of the stage in `folder`, and its record."""
    logs = [log for log in sorted(folder.glob("*.jsonl")) if (folder / RESULT / INDEX).exists()]
    if len(logs) != 1:
        raise UserError(f"{folder} holds no finished stage; run it to its end first")
    name, path = logs[0].stem, logs[0].with_suffix(".pt")
    settings = read_state(path)["settings"]
    steps = typed(settings, StageSettings, str(path), others="ignore").training.schedule.steps
    return name, {**_finished(folder, name, steps), **{key: settings[key] for key in ("training", "data")}}


def _finished(folder: Path, name: str, steps: int) -> dict[str, Any]:
    log = folder / f"{name}.jsonl"
    last = last_record(log)
    if last is None or last["step"] < steps:
        done = 0 if last is None else last["step"]
        raise UserError(f"stage {name} in {folder} has made {done} of {steps} steps; run it to its end first")
    return {"steps": steps, "seconds": last["seconds"], "loss": last["loss"], **mean_speed(log)}
