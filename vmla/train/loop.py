"""The training loop: every stage runs through this one, and continues exactly where it stopped.

A stage draws its batch from (seed, step) alone, so model, averages, optimizers and the step count
are the whole state: stopping and resuming anywhere gives the same weights as never having stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vmla.train.optimizers import Optimizers, Schedule
from vmla.train.state import load_state, save_state

Report = Callable[[str], None]
"""Takes one line about how far the training is."""


class Stage(Protocol):
    """One part of a training run: a model, how to optimise it, and its loss."""

    name: str
    schedule: Schedule

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def settings(self) -> dict[str, Any]:
        """All that determines the result, as JSON values; a run with other settings is refused."""

    def loss(self, step: int) -> Tensor:
        """The scalar loss on the batch that belongs to `step`."""


@dataclass
class Progress:
    """A stage under way: what its state file holds."""

    step: int
    average: dict[str, Tensor]
    optimizers: Optimizers
    seconds: float = 0.0


def train(
    stage: Stage, folder: Path, *, report: Report, stop_after: int | None = None
) -> dict[str, Tensor] | None:
    """Train `stage` in `folder` to its last step, or for `stop_after` steps; resumes what is there.

    Returns:
        The averaged weights, by parameter name; None if it stopped before its last step.

    Raises:
        UserError: if `folder` holds this stage with other settings, or its state is damaged.
    """
    progress = _resume(stage, folder)
    whole = stage.schedule.steps
    end = whole if stop_after is None else min(whole, progress.step + stop_after)
    began, before = time.monotonic(), progress.seconds
    with (folder / f"{stage.name}.jsonl").open("a") as log:
        while progress.step < end:
            loss = _advance(stage, progress)
            progress.seconds = before + time.monotonic() - began
            _record(stage, progress, loss, log.write, report)
            if progress.step % stage.schedule.save_every == 0 or progress.step == end:
                log.flush()
                _save(stage, progress, folder)
    return progress.average if progress.step == whole else None


def _advance(stage: Stage, progress: Progress) -> float:
    """One optimizer step; the averages follow."""
    loss = stage.loss(progress.step)
    loss.backward()
    progress.optimizers.step(progress.step)
    progress.step += 1
    # The horizon grows with the run, so that the first, untrained weights are soon forgotten.
    decay = min(stage.schedule.average, 1 - 1 / (1 + progress.step / 10))
    with torch.no_grad():
        for name, parameter in stage.model.named_parameters():
            progress.average[name].lerp_(parameter.float(), 1 - decay)
    return float(loss.detach())


def _record(
    stage: Stage, progress: Progress, loss: float, write: Callable[[str], Any], report: Report
) -> None:
    rate = progress.optimizers.factor(progress.step - 1)
    line = {
        "step": progress.step,
        "loss": round(loss, 6),
        "rate": round(rate, 4),
        "seconds": round(progress.seconds, 1),
    }
    write(json.dumps(line) + "\n")
    report(
        f"{stage.name}: step {progress.step} of {stage.schedule.steps}, loss {loss:.4f}, "
        f"{progress.seconds / progress.step:.2f} s per step"
    )


def _resume(stage: Stage, folder: Path) -> Progress:
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(stage.model, stage.schedule)
    average = {name: p.detach().float().clone() for name, p in stage.model.named_parameters()}
    progress = Progress(step=0, average=average, optimizers=optimizers)
    state = load_state(folder / f"{stage.name}.pt", stage.settings())
    if state is not None:
        stage.model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        progress.step, progress.seconds = state["step"], state["seconds"]
        progress.average = state["average"]
    _forget_after(folder / f"{stage.name}.jsonl", progress.step)
    return progress


def _save(stage: Stage, progress: Progress, folder: Path) -> None:
    state = {
        "settings": stage.settings(),
        "step": progress.step,
        "seconds": progress.seconds,
        "model": stage.model.state_dict(),
        "average": progress.average,
        "optimizers": progress.optimizers.state_dict(),
    }
    save_state(folder / f"{stage.name}.pt", state)


def last_record(log: Path) -> dict[str, Any] | None:
    """The latest line of a stage's log, None if nothing was logged yet."""
    records = _records(log)
    return records[-1] if records else None


def _records(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log: what was killed while writing leaves a part of one at the end."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that are about to be made again."""
    kept = [json.dumps(record) + "\n" for record in _records(log) if record["step"] <= step]
    aside = log.with_suffix(".tmp.jsonl")
    aside.write_text("".join(kept))
    aside.replace(log)
