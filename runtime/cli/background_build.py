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
from pathlib import Path

import click

from plugins.documents.lock import locked
from plugins.errors import UserError
from runtime.cli.background.measure import measure
from runtime.cli.background.records import Builds
from runtime.cli.export import build_engine, for_cpu
from vmla.cli.command import OneLineCommand
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
        build_engine(checkpoint, for_cpu(), None, aside, stop)
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
    if measured.times_as_fast <= 1:
        raise UserError(f"the engine is {measured.gain}")
    aside.rename(folder)
    say(measured.line())


if __name__ == "__main__":
    main()
