"""The training loop of every stage, which resumes exactly where it stopped.

A stage draws its batch from (seed, step) alone, so model, averages, optimizers and the step count
are the whole state: stopping and resuming anywhere gives the same weights as never having stopped.
Where the machine chooses the type of the arithmetic (`vmla.train.optim.precision`), another machine may
choose another; the run then goes on, but not to the last bit as it would have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from plugins.atomic_files import remove_temporary
from plugins.documents.lock import locked
from vmla.cli.stopping import Interrupted, Stop
from vmla.train.loop.log import Report, Speedometer, forget_after, record
from vmla.train.loop.parallel import ALONE, Parallel
from vmla.train.loop.prefetch import Prefetcher
from vmla.train.loop.sharded_state import load_shards, save_shards
from vmla.train.loop.state import load_state, save_state
from vmla.train.loop.throughput import Meter, matrix_peak
from vmla.train.optim.optimizers import Optimizers, TrainingSchedule

Watcher = Callable[[str, dict[str, Any], dict[str, Tensor]], None]
"""Called after every step, in every process, with the stage's name, the logged line and the averaged
weights."""


class Stage(Protocol):
    """One part of a training run: a model, how to optimise it, and its loss."""

    name: str
    meter: Meter
    """Counts tokens, operations and waiting, from which the loop reports the speed."""

    @property
    def schedule(self) -> TrainingSchedule:
        """Learning rates, averaging and number of steps."""

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained."""

    def settings(self) -> dict[str, Any]:
        """All that determines the result, as JSON values; a run with other settings is refused."""

    def loss(self, step: int) -> Tensor:
        """The scalar loss on the batch that belongs to `step`; of several processes, on one of its parts."""


@runtime_checkable
class Averaging(Protocol):
    """A stage that uses the average of its weights while it trains."""

    target: nn.Module
    """A second network of the same shape, whose parameters are the average."""


@runtime_checkable
class Accompanied(Protocol):
    """A stage with a second network that learns between the steps of the first."""

    companion: nn.Module
    companion_optimizers: Optimizers

    def accompany(self, step: int, parallel: Parallel) -> None:
        """Train the companion before `step`."""


@runtime_checkable
class Drawing(Protocol):
    """A stage whose batches are drawn while it computes."""

    prefetcher: Prefetcher[Any]


@dataclass
class TrainState:
    """A stage under way: the contents of its state file."""

    step: int
    average: dict[str, Tensor]
    optimizers: Optimizers
    seconds: float = 0.0
    saved: int = 0
    """The last step whose state is on disk."""


def train(
    stage: Stage,
    folder: Path,
    *,
    report: Report,
    stop_after: int | None = None,
    parallel: Parallel = ALONE,
    watchers: Sequence[Watcher] = (),
    stop: Stop | None = None,
) -> dict[str, Tensor] | None:
    """Train `stage` in `folder` to its last step, or for `stop_after` steps; resumes a state in `folder`.

    Args:
        stage: the stage to train.
        folder: where its state and its log are written.
        report: takes a line after each step.
        stop_after: a number of steps; all of them if not given.
        parallel: this process among others, which all call this.
        watchers: are called after each step; nothing they do may change what is computed.
        stop: ends it after the step under way, with its state saved; processes that share weights, which
            would end after different steps, are interrupted instead.

    Returns:
        The averaged weights, by parameter name; None if it stopped before its last step.

    Raises:
        Interrupted: if it was stopped.
        UserError: if `folder` holds this stage with other settings, its state is damaged, or another
            process trains it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / stage.name) if parallel.rank == 0 else nullcontext():
        return _train(
            stage, folder, report=report, stop_after=stop_after, parallel=parallel, watchers=watchers,
            stop=stop or Stop(),
        )  # fmt: skip


def _train(
    stage: Stage, folder: Path, *, report: Report, stop_after: int | None, parallel: Parallel,
    watchers: Sequence[Watcher], stop: Stop,
) -> dict[str, Tensor] | None:  # fmt: skip
    """See `train`, which locks the folder meanwhile."""
    progress = _resume(stage, folder, parallel)
    stop.last_words = partial(_resume_hint, stage, progress, folder)
    stop.last_acts = partial(remove_temporary, folder)
    whole = stage.schedule.steps
    end = whole if stop_after is None else min(whole, progress.step + stop_after)
    began, before = time.monotonic(), progress.seconds
    if progress.step < end:
        speeds = Speedometer(matrix_peak(stage.meter.dtype, parallel.device), parallel.world)
    log_file = (folder / f"{stage.name}.jsonl").open("a") if parallel.rank == 0 else StringIO()
    stopped = False
    with log_file as log, _drawing_ahead(stage), nullcontext() if parallel.sharded else stop.polled():
        while progress.step < end and not stopped:
            started = time.monotonic()
            loss = _advance(stage, progress, parallel)
            speed = speeds.add(stage.meter.take(time.monotonic() - started))
            progress.seconds = before + time.monotonic() - began
            rate = progress.optimizers.factor(progress.step - 1)
            line = record(progress.step, loss, rate, progress.seconds, speed)
            log.write(json.dumps(line) + "\n")
            report(_shown(stage, progress, loss, speeds))
            stopped = stop.is_set()
            if progress.step % stage.schedule.save_every == 0 or progress.step == end or stopped:
                log.flush()
                _save(stage, progress, folder, parallel)
            for watch in watchers:
                watch(stage.name, line, progress.average)
    if stopped:
        raise Interrupted(stop.number)
    return progress.average if progress.step == whole else None


def _resume_hint(stage: Stage, progress: TrainState, folder: Path) -> list[str]:
    """The lines that are printed if a signal ends the run, in this stage or after it."""
    return [f"{folder} keeps step {progress.saved} of {stage.name}; run the same command again to continue"]


def _drawing_ahead(stage: Stage) -> AbstractContextManager[Any]:
    """Ends the stage's thread, if it has one, however training ends."""
    return stage.prefetcher if isinstance(stage, Drawing) else nullcontext()


def _advance(stage: Stage, progress: TrainState, parallel: Parallel) -> float:
    """One optimizer step; the averages follow."""
    if isinstance(stage, Accompanied):
        stage.accompany(progress.step, parallel)
    loss = parallel.backward(stage.loss, progress.step)
    progress.optimizers.step(progress.step)
    progress.step += 1
    # The average's horizon grows with the run (about a tenth of it), so that untrained weights soon vanish
    # from it.
    decay = min(stage.schedule.average, 1 - 1 / (1 + progress.step / 10))
    with torch.no_grad():
        for name, parameter in stage.model.named_parameters():
            progress.average[name].lerp_(parameter.float(), 1 - decay)
    return loss


def _shown(stage: Stage, progress: TrainState, loss: float, speeds: Speedometer) -> str:
    """The progress line: step, type, loss, and the speed of the latest steps (of all, after the last)."""
    whole = stage.schedule.steps
    speed = speeds.whole if progress.step == whole else speeds.recent
    dtype = str(stage.meter.dtype).removeprefix("torch.")
    return (
        f"{stage.name}: step {progress.step} of {whole}, loss {loss:.4f}, "
        f"{progress.seconds / progress.step:.2f} s per step in {dtype}, {speed}"
    )


def _resume(stage: Stage, folder: Path, parallel: Parallel) -> TrainState:
    optimizers = Optimizers(stage.model, stage.schedule, stage.meter.dtype)
    progress = TrainState(step=0, average=_average(stage), optimizers=optimizers)
    parts, movers = _parts(stage, progress)
    if parallel.sharded:
        state = load_shards(folder, stage.name, parts, movers, _settings(stage, parallel))
    else:
        state = load_state(_state_file(stage, folder), _settings(stage, parallel))
        if state is not None:
            _fill(parts, movers, state)
    if state is not None:
        progress.step, progress.seconds = state["step"], state["seconds"]
        progress.saved = progress.step
    if parallel.rank == 0:
        forget_after(folder / f"{stage.name}.jsonl", progress.step)
    return progress


def _average(stage: Stage) -> dict[str, Tensor]:
    """The tensors of the averaged weights: those of the stage's target network, if it has one."""
    if isinstance(stage, Averaging):
        return {name: p.detach() for name, p in stage.target.named_parameters()}
    return {name: p.detach().float().clone() for name, p in stage.model.named_parameters()}


def _parts(stage: Stage, progress: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Optimizers]]:
    """All tensors of the state, by name, and the optimizers; both are written to when a run resumes."""
    parts, movers = {"model": stage.model.state_dict(), "average": progress.average}, {}
    movers["optimizers"] = progress.optimizers
    if isinstance(stage, Accompanied):
        parts["companion"] = stage.companion.state_dict()
        movers["companion_optimizers"] = stage.companion_optimizers
    return parts, movers


@torch.no_grad()
def _fill(parts: dict[str, dict[str, Tensor]], movers: dict[str, Optimizers], state: dict[str, Any]) -> None:
    """Copy a state that was read into where it is used."""
    for key, tensors in parts.items():
        for name, tensor in tensors.items():
            tensor.copy_(state[key][name])
    for key, each in movers.items():
        each.load_state_dict(state[key])


def _settings(stage: Stage, parallel: Parallel) -> dict[str, Any]:
    """The settings that a resumed run must share; the number of processes in a group is none of them."""
    return stage.settings() | ({} if parallel.group == 1 else {"group": parallel.group})


def _save(stage: Stage, progress: TrainState, folder: Path, parallel: Parallel) -> None:
    parts, movers = _parts(stage, progress)
    record = {
        "settings": _settings(stage, parallel),
        "step": progress.step,
        "seconds": progress.seconds,
    }
    if parallel.sharded:
        save_shards(folder, stage.name, parts, movers, record)
    else:
        state = {**record, **parts, **{key: each.state_dict() for key, each in movers.items()}}
        save_state(_state_file(stage, folder), state)
    progress.saved = progress.step


def _state_file(stage: Stage, folder: Path) -> Path:
    return folder / f"{stage.name}.pt"
