"""`vmla-run --grid`: one prompt under many seeds, side by side in one video."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from plugins.errors import UserError
from runtime.cli.background.after import after_run
from runtime.cli.background.worth import DenoiseTime
from runtime.device.memory import free_bytes
from runtime.outputs import Frames, FrameSink, Mark
from runtime.outputs.registry import kind_of
from runtime.outputs.stream import is_stream
from runtime.session.destination import check_output, claimed, open_sink
from runtime.session.generate import check_room, load_session
from runtime.session.outcome import raise_failure
from runtime.session.replay import Order, warnings_of
from runtime.telemetry.events import TelemetryGroup, TogetherLine
from vmla.cli.progress import ProgressLine
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say, warn

MOST = 64
"""The most videos in one grid."""
NOT_WITH = ("videos", "resume", "repeat", "events", "metrics", "memory", "overwrite")
"""Options that a grid does not take."""


def size_of(text: str) -> tuple[int, int]:
    """The rows and columns in text such as `2x3`.

    Raises:
        UsageError: if the text has another form, or means fewer than 2 or more than `MOST` videos.
    """
    found = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text)
    rows, columns = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 < rows * columns <= MOST:
        raise click.UsageError(f"--grid takes ROWSxCOLUMNS of 2 to {MOST} videos, for example --grid 2x3")
    return rows, columns


class Mosaic:
    """Tiles the frames of several videos into one sink, each frame as soon as every video has it.

    Each video writes to its own tile, from its own thread.
    """

    def __init__(self, sink: FrameSink, rows: int, columns: int) -> None:
        self._sink, self._shape, self._lock = sink, (rows, columns), threading.Lock()
        self._waiting: list[list[Frames]] = [[] for _ in range(rows * columns)]
        self._failure: OSError | None = None
        self.frames = 0
        """The number of frames that the sink has taken."""
        self.tiles = [TileSink(self, place) for place in range(rows * columns)]

    def take(self, place: int, frames: Frames) -> None:
        """Take frames [n, H, W, 3] uint8 of the video at `place`, counted row by row.

        Raises:
            OSError: if the sink has failed, on these frames or on earlier ones.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._waiting[place].extend(frames)
            ready = min(map(len, self._waiting))
            if not ready:
                return
            pictures = np.stack([np.stack(waiting[:ready]) for waiting in self._waiting])
            self._waiting = [waiting[ready:] for waiting in self._waiting]
            try:
                self._sink.write(side_by_side(pictures, *self._shape))
            except OSError as error:
                self._failure = error
                raise
            self.frames += ready

    def close(self) -> None:
        """Close the sink; frames that only some of the videos have are left out."""
        self._sink.close()


class TileSink:
    """The sink of one video of the grid."""

    def __init__(self, mosaic: Mosaic, place: int) -> None:
        self._mosaic, self._place, self._frames = mosaic, place, 0

    def write(self, frames: Frames) -> None:
        """Take [n, H, W, 3] frames.

        Raises:
            OSError: if they cannot be stored.
        """
        self._mosaic.take(self._place, frames)
        self._frames += len(frames)

    def mark(self) -> Mark:
        """The number of frames so far."""
        return {"frames": self._frames}

    def close(self) -> None:
        """Do nothing: the grid's sink is closed once all videos have ended."""


def side_by_side(videos: Frames, rows: int, columns: int) -> Frames:
    """Tile videos [rows * columns, n, H, W, 3], row by row, to frames [n, rows * H, columns * W, 3]."""
    _, count, height, width, colours = videos.shape
    tiles = videos.reshape(rows, columns, count, height, width, colours).transpose(2, 0, 3, 1, 4, 5)
    return np.ascontiguousarray(tiles).reshape(count, rows * height, columns * width, colours)


def run_grid(options: Mapping[str, Any], order: Order, stop: Stop) -> None:
    """Make the video of `order` under its seed and the seeds that follow, tiled into one file.

    Args:
        options: the command's options, by name.
        order: the first video, which is at the top left.
        stop: when set, all videos stop after the current chunk.

    Raises:
        UserError: if the output exists already, memory does not suffice, or one of the videos failed.
    """
    rows, columns = size_of(options["grid"])
    count, output = rows * columns, options["output"]
    warn(warnings_of([order]))
    seeds = f"seeds {order.job.seed} to {order.job.seed + count - 1}, row by row"
    if options["dry_run"]:
        say(*order.job.what_runs(), *order.job.plan().lines(), seeds)
        return
    if output is None:
        raise click.UsageError("give -o, for example: -o grid.mp4")
    if is_stream(output):
        raise UserError(f"{output} is a stream; a grid goes to a file or a folder")
    check_output(output, overwrite=False)
    memory = free_bytes(order.job.device)
    check_room(order.job.plan(), count, memory)
    say(*order.job.what_runs(), seeds)
    spent = DenoiseTime()
    with claimed(output, fresh=True, overwrite=False):
        complete = _make(order, output, rows, columns, memory, spent, stop)
    after_run(options, order.job, spent, complete=complete)
    if not complete:
        sys.exit(stop.status)


def _make(
    order: Order, output: Path, rows: int, columns: int, memory: int, spent: DenoiseTime, stop: Stop
) -> bool:
    """Roll out all videos in one session; whether they have their whole length."""
    count, began = rows * columns, perf_counter()
    mosaic = Mosaic(open_sink(output, scale=order.scale), rows, columns)
    try:
        with ExitStack() as stack:
            session = stack.enter_context(load_session(order.job, memory))
            stack.enter_context(stop.polled())
            line = TogetherLine(stack.enter_context(ProgressLine(sys.stderr)), videos=count)
            tasks = [
                session.admit(
                    replace(order.job, seed=order.job.seed + number), tile,
                    frames=order.frames, telemetry=TelemetryGroup([line.of(str(number)), spent]),
                )
                for number, tile in enumerate(mosaic.tiles)
            ]  # fmt: skip
            session.run(stop)
            for task in tasks:
                task.wait()
    finally:
        mosaic.close()
    for task in tasks:
        raise_failure(task)
    say(f"{output}: {mosaic.frames} frames of {count} videos in {perf_counter() - began:.1f} s")
    complete = all(task.producer.complete for task in tasks)
    if not complete:
        say(f"stopped; {kind_of(output).what} of a grid cannot be resumed", err=True)
    return complete
