"""`vmla-train stage`: options to a job, planned or carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from plugins.errors import UserError
from vmla.cli.machine import binary_size
from vmla.cli.options.device import tell_device
from vmla.cli.stopping import Stop
from vmla.train.loop.parallel import processes
from vmla.train.monitoring.dashboard import dashboard
from vmla.train.recipes.from_checkpoint import distillation_recipe
from vmla.train.recipes.memory_budget import memory_by_part
from vmla.train.stage import StageRun

Say = Callable[[str], None]
GIVEN = ("name", "start", "data", "output", "teacher", "critic", "samples")
NEEDED = {"start": "--from", "data": "--data", "output": "-o"}


def start_stage(options: Mapping[str, Any], report: Say, say: Say, stop: Stop) -> None:
    """Run a stage as the options of the command say; `report` shows progress, `say` prints results.

    `stop` ends it after the step under way.

    Raises:
        UserError: for options, data or checkpoints that do not fit together.
    """
    chosen = distillation_recipe(options["recipe"])
    if options["dry_run"]:
        for part, size in memory_by_part(chosen, options["name"], gpus=options["gpus"]).items():
            say(f"{part}: {binary_size(size)}")
        return
    for key, option in NEEDED.items():
        if options[key] is None:
            raise UserError(f"{option} is missing; see vmla-train stage --help")
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    job = StageRun(recipe=chosen, **{key: options[key] for key in GIVEN})
    with (
        processes(options["accumulate"], options["device"]) as parallel,
        dashboard(options["log"], job.output, parallel) as watchers,
    ):
        if parallel.rank == 0:
            tell_device(parallel.device, options["device"])
        said = report if parallel.rank == 0 else _silent
        job.run(parallel, said, stop_after=options["stop_after"], watchers=watchers, stop=stop)


def _silent(line: str) -> None:
    """Drop a line: only the first process reports."""
