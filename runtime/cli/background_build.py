"""The process that builds one engine: `python -m runtime.cli.background_build CHECKPOINT FOLDER`.

The engine's folder appears whole or not at all (`export.engine.engine_folder`), so this process may be ended
at any moment. What it prints is the log. Afterwards it compares the engine with the model: in its results,
because nobody asked for this engine, and in speed, for the hints about later models too. Until then it lies
aside, where no video finds it; one that is wrong or gains nothing is removed.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import torch

from plugins.documents.lock import locked
from plugins.errors import UserError
from runtime.cli.background.records import Builds, Measured, weight_bytes
from runtime.cli.export import build_for_cpu
from runtime.cli.verify.engine import SINGLE, relative_error
from runtime.device.threads import Cores, using
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import open_engine
from runtime.engines.timing.step_timing import fewest_seconds, full_window
from runtime.planning.compute import THREADS
from vmla.cli.command import OneLineCommand
from vmla.cli.machine import hardware
from vmla.cli.stopping import Stop
from vmla.cli.terminal import one_line, say
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.locate import find_checkpoint

NICENESS = 10
"""Of the build: nobody waits for it."""
FIRST_TO_GO = "1000"
"""What Linux takes for a process that it shall end before any other if memory runs out."""


@click.command(cls=OneLineCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, /, checkpoint: Path, folder: Path) -> None:
    """Build the float32 engine of CHECKPOINT in FOLDER for this CPU."""
    os.nice(NICENESS)
    if (score := Path("/proc/self/oom_score_adj")).exists():
        with suppress(OSError):  # a sandbox may refuse it, and the engine is the same without
            score.write_text(FIRST_TO_GO)
    with locked(folder):
        if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
            os.truncate(sys.stdout.fileno(), 0)  # of earlier builds; now no other one writes there
        build_and_measure(find_checkpoint(checkpoint), folder, context.ensure_object(Stop))


def build_and_measure(checkpoint: Checkpoint, folder: Path, stop: Stop) -> None:
    """Build the engine, and record in the store what it gains, or why there is none.

    Raises:
        UserError: if it cannot be built, or is no faster than the model. Neither is tried again unasked.
    """
    builds, aside = Builds.of(folder, checkpoint.model_hash()), folder.with_name(f".{folder.name}.unchecked")
    try:
        if folder.exists():
            raise UserError(f"{folder} is there already")
        say(f"building {folder} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed; no other one holds the lock
        began = time.perf_counter()
        build_for_cpu(str(checkpoint.folder), aside, stop)
        _keep_if_good(checkpoint, aside, folder, time.perf_counter() - began)
    except Exception as error:
        replace(builds, failure=one_line(str(error) or type(error).__name__)).write(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    Builds.path(folder).unlink(missing_ok=True)


def _keep_if_good(checkpoint: Checkpoint, aside: Path, folder: Path, build_seconds: float) -> None:
    """Move the engine to `folder` if it runs, computes what the model does, and is faster."""
    measured = measure(checkpoint, aside, build_seconds)
    measured.write(folder)
    gain = f"{measured.times_as_fast:.2f} times as fast as the PyTorch model"
    if measured.times_as_fast <= 1:
        raise UserError(f"the engine is {gain}")
    aside.rename(folder)
    say(f"it is {gain}: {1e3 * measured.engine_seconds:.1f} ms a pass")


def measure(checkpoint: Checkpoint, folder: Path, build_seconds: float) -> Measured:
    """Time passes of the engine in `folder` and of the model, on as many threads as a video has by default.

    Raises:
        UserError: if the engine's results are not the model's.
    """
    cpu, inputs = torch.device("cpu"), full_window(checkpoint.model_config(), torch.float32)
    eager = EagerEngine(checkpoint.transformer(), checkpoint.text(), device=cpu, dtype=torch.float32)
    slots = eager.cache_spec.slots
    threads = Cores.of(THREADS, cpu, silent=False).denoiser
    with using(threads), open_engine(folder, checkpoint) as engine:
        pairs = zip(engine.step(inputs, held=slots), eager.step(inputs, held=slots), strict=True)
        if (error := max(relative_error(*pair) for pair in pairs)) > SINGLE["fp32"]:
            raise UserError(f"the engine's results differ from the model's by {error:.1e}, relative to them")
        fewest = fewest_seconds({
            "eager": partial(eager.step, inputs, held=slots),
            "engine": partial(engine.step, inputs, held=slots),
        })  # fmt: skip
    return Measured(
        checkpoint=checkpoint.name,
        weight_bytes=weight_bytes(checkpoint),
        threads=threads or 1,
        build_seconds=build_seconds,
        eager_seconds=fewest["eager"],
        engine_seconds=fewest["engine"],
        machine=hardware(),
    )


if __name__ == "__main__":
    main()
