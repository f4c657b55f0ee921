"""The server under load: its costs, its viewers' delays, and the time to move a stream.

    python -m bench.serving.run

One process runs the server, in a thread, and all its viewers, which makes the figures slightly worse, never
better. For each number of streams, the same videos are first made without a server.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from bench.harness.document import Record
from bench.harness.whole_numbers import WholeNumbers
from bench.serving import measurements
from bench.serving.hop import ray_hop
from bench.serving.server import Running, running
from plugins.errors import missing_extra
from runtime.planning.job import Job
from runtime.session.replay import Order, new
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say


@click.command(cls=OneLineCommand, groups={
    "What is served": ("checkpoint", "streams", "seconds"),
    "How": ("connects", "times", "threads", "ray", "output"),
})  # fmt: skip
@click.option("--checkpoint", default="sprites", show_default=True, help="Checkpoint folder.")
@click.option("--streams", type=WholeNumbers("streams", "1,2,4"), default="1,2,4,8,16", show_default=True,
              help="Numbers of streams at once.")  # fmt: skip
@click.option("--seconds", default=10.0, show_default=True, help="Length of each stream.")
@click.option("--connects", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Number of viewers who connect and leave.")  # fmt: skip
@click.option("--times", type=click.IntRange(min=1), default=10, show_default=True,
              help="Number of hand-overs, forks and cold returns, of which the median counts.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads (default: 2).")
@click.option("--ray/--no-ray", default=True, show_default=True,
              help="Measure what a Ray cluster adds to a request.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/serve.json).")  # fmt: skip
def main(
    checkpoint: str, streams: tuple[int, ...], seconds: float, connects: int, times: int, threads: int | None,
    ray: bool, output: Path | None,
) -> None:  # fmt: skip
    """Measure the server as its viewers see it."""
    if ray and find_spec("ray") is None:  # checked first, because it is measured last
        raise missing_extra("ray", "ray")
    named = str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint
    asked = partial(new, measurements.PROMPT, named, scale=None, seconds=seconds, threads=threads)
    order = asked()
    record = Record("serve", output, device=order.job.device)
    record.save(checkpoint=checkpoint, frames=order.frames)
    with tempfile.TemporaryDirectory() as folder, running(order.job, Path(folder) / "streams") as server:
        crowds = _crowds(record, order, server, streams, Path(folder))
        record.save(connects=measurements.connects(server, connects))
        with running(order.job, Path(folder) / "elsewhere") as other:
            moves = _moves(server, other, times)
    record.save(**moves)
    if ray:  # ten times as often, because one request takes only milliseconds
        record.save(ray_hop=_hop(partial(_job_of, asked), order.job, 10 * times))
    record.finish(
        first_frame_seconds=crowds[0]["first_frame_seconds"]["p50"],
        least_share=min(one["share_of_alone"] for one in crowds),
        hand_over_ms=moves["hand_over"]["median_ms"],
        fork_ms=moves["fork"]["median_ms"],
        cold_return_ms=moves["cold_return"]["median_ms"],
    )


def _crowds(
    record: Record, order: Order, server: Running, counts: tuple[int, ...], folder: Path
) -> list[dict[str, Any]]:
    """Each number of streams, without the server and with it."""
    measurements.with_viewers(server, 1, order.frames)  # unmeasured: the first stream is slow
    crowds: list[dict[str, Any]] = []
    for count in counts:
        alone = measurements.without_server(order, count, folder / f"alone-{count}")
        figures = measurements.with_viewers(server, count, order.frames)
        share = round(figures["frames_per_second"] / alone, 4)
        crowds.append({
            "streams": count, "alone_frames_per_second": round(alone, 1), "share_of_alone": share, **figures
        })  # fmt: skip
        speed = figures["frames_per_second"]
        say(f"{count:>4} streams  {speed:>8} frames/s, {100 * share:.0f}% of alone")
        record.save(crowds=crowds)
    return crowds


def _moves(server: Running, other: Running, times: int) -> dict[str, dict[str, float]]:
    """Milliseconds to move a stream to another server, to fork it, and to bring it back into memory."""
    name = measurements.begin(server)
    return {
        "state_moved": measurements.repeated(lambda: measurements.hand_over(server, other, name)[0], times),
        "hand_over": measurements.repeated(lambda: measurements.hand_over(server, other, name)[1], times),
        "fork": measurements.repeated(lambda: measurements.fork(server, name), times),
        "cold_return": measurements.repeated(lambda: measurements.cold_return(server, name), times),
    }


def _hop(job_of: Callable[[], Job], job: Job, times: int) -> dict[str, float]:
    """The time that a cluster's one address adds to a request."""
    with tempfile.TemporaryDirectory() as folder:
        return ray_hop(job_of, job, Path(folder) / "streams", times)


def _job_of(asked: Callable[[], Order]) -> Job:
    return asked().job


if __name__ == "__main__":
    main()
