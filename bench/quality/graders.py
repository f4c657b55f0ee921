"""`vmla-bench grades --ray`: batches of prompts over the machines of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from io import StringIO
from typing import Any, Protocol

import torch

from plugins.errors import UserError
from vmla.cli.progress import ProgressLine
from vmla.cluster.library import connect, room_for
from vmla.cluster.pool import ActorPool


class Batches(Protocol):
    """What is graded batch by batch."""

    def marks_of(self, first: int, line: ProgressLine) -> Iterable[list[Any]]:
        """The grades of the batch that begins with the prompt number `first`, in parts."""


class Grader:
    """One worker."""

    def __init__(self, begin: Callable[[], Batches], threads: int) -> None:
        """Load what is graded by `begin`; compute on as many `threads` as one machine alone would."""
        torch.set_num_threads(threads)
        self._batches = begin()

    def make(self, first: int) -> tuple[int, list[Any]]:
        """The batch that begins with the prompt number `first`."""
        with ProgressLine(StringIO()) as line:
            return first, [one for part in self._batches.marks_of(first, line) for one in part]

    def stop(self) -> None:
        """A batch is not stopped: the pool ends its workers."""


def graded_by_ray(
    begin: Callable[[], Batches], *, batch: int, count: int, gpus: float
) -> Generator[list[Any], None, None]:
    """All grades so far, in the order of the `count` prompts, whenever a batch is done.

    Raises:
        UserError: if the cluster has no room, or a worker fails.
    """
    ray, threads, firsts = connect(), torch.get_num_threads(), range(0, count, batch)
    workers = min(len(firsts), room_for(ray.cluster_resources(), cpus=threads, gpus=gpus))
    kind: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_concurrency=2)(Grader)
    pool = ActorPool[int, tuple[int, list[Any]]](
        ray, lambda: kind.remote(begin, threads), _give_up, workers=workers
    )
    done: dict[int, list[Any]] = {}
    for first, graded in pool.run(firsts, threading.Event()):
        done[first] = graded
        yield [one for number in sorted(done) for one in done[number]]


def _give_up(first: int, why: str) -> tuple[int, list[Any]]:
    raise UserError(f"the batch from prompt {first} on: {why}")
