"""`vmla-run --videos FILE --ray`: checks the options, makes the videos and sets the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from plugins.errors import UserError
from runtime.cluster.maker import Made
from runtime.cluster.pool import video_pool
from runtime.planning.job import Job
from runtime.prompts.videos_file import VideoEntry
from runtime.session.replay import Order
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say
from vmla.cluster.library import connect, room_for

ONE_MACHINE = ("memory", "events", "metrics")
"""Options that concern a single machine, and are refused with --ray."""
PATHS = ("checkpoint", "engine", "decoder", "start")
"""Options whose values may be paths."""


def run_pool(
    options: dict[str, Any], videos: list[VideoEntry], job: Job, order_of: Callable[[str], Order], stop: Stop
) -> None:
    """Make `videos` on the machines of a Ray cluster.

    Args:
        options: the command's options, by name.
        videos: the videos that the file lists.
        job: the job of any one of them; it tells how many CPUs and GPUs a worker needs.
        order_of: returns the order for a prompt under all other options; called in every worker.
        stop: when set, every worker stops after its current chunk.
    """
    if given := [f"--{name}" for name in ONE_MACHINE if options[name] is not None]:
        raise click.UsageError(f"--ray works on several machines; leave out {', '.join(given)}")
    ray = connect()
    gpus = 1.0 if job.device.type == "cuda" else 0.0
    cpus = options["cpus_per_replica"] or job.threads
    workers = min(len(videos), room_for(ray.cluster_resources(), cpus=cpus, gpus=gpus))
    pool = video_pool(
        ray, order_of, options["output"].absolute(), workers=workers, cpus=cpus, gpus=gpus,
        save_every=options["save_every"], overwrite=options["overwrite"],
    )  # fmt: skip
    say(*job.what_runs(), f"workers: {workers} for {len(videos)} videos")
    made = []
    with stop.polled(), closing(pool.run(videos, stop)) as endings:
        for one in endings:
            made.append(one)
            _say(one, options["output"])
    _end(made, videos, stop)


def with_absolute_paths(options: dict[str, Any]) -> dict[str, Any]:
    """`options` for any working folder: paths that exist here are made absolute."""
    named = {name: options[name] for name in PATHS if options.get(name) is not None}
    whole = {name: Path(path).absolute() for name, path in named.items() if Path(path).exists()}
    return {**options, **{name: type(named[name])(path) for name, path in whole.items()}}


def _say(one: Made, folder: Path) -> None:
    output = folder / f"{one.name}.mp4"
    if one.failure is not None:
        say(f"{output}: {one.failure}", err=True)
    elif one.complete and not one.made:
        say(f"{output}: {one.frames} frames, already made")
    else:
        say(f"{output}: {one.frames} frames" + ("" if one.complete else ", stopped"))


def _end(made: list[Made], videos: list[VideoEntry], stop: Stop) -> None:
    """Exit with the signal's status if stopped, and with 2 if a video failed."""
    if len(made) < len(videos) or not all(one.complete or one.failure for one in made):
        say("stopped; run the same command again to continue", err=True)
        sys.exit(stop.status)
    if failed := [one for one in made if one.failure is not None]:
        raise UserError(f"{len(failed)} of {len(made)} videos failed: {failed[0].failure}")
