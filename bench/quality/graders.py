"""`vmla-bench grades --ray`: batches of prompts over the machines of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from io import StringIO
from typing import Any, Protocol

import torch

from bench.quality.rollouts import VideoBatch
from plugins.errors import UserError
from vmla.cli.progress import ProgressLine
from vmla.cluster.library import connect, room_for
from vmla.cluster.pool import ActorPool


class Grades(Protocol):
    """Grades one batch after another."""

    def marks_of(self, batch: VideoBatch[str], line: ProgressLine) -> Iterable[list[Any]]:
        """The grades of `batch`, mark by mark."""


class Grader:
    """A worker of the pool, which grades one batch after another."""

    def __init__(self, begin: Callable[[], Grades], threads: int) -> None:
        """Load the model to grade by `begin`; compute on as many `threads` as one machine alone would."""
        torch.set_num_threads(threads)
        self._grades = begin()

    def make(self, batch: VideoBatch[str]) -> tuple[int, list[Any]]:
        """The number of the batch's first prompt, and all its grades."""
        with ProgressLine(StringIO()) as line:
            return batch.first, [one for part in self._grades.marks_of(batch, line) for one in part]

    def stop(self) -> None:
        """A batch is not stopped: the pool ends its workers."""


def graded_by_ray(
    begin: Callable[[], Grades], parts: Sequence[VideoBatch[str]], *, gpus: float
) -> Generator[list[Any], None, None]:
    """All grades so far, in the order of the prompts, whenever a batch is done.

    Raises:
        UserError: if the cluster has no room, or a worker fails.
    """
    ray, threads = connect(), torch.get_num_threads()
    workers = min(len(parts), room_for(ray.cluster_resources(), cpus=threads, gpus=gpus))
    kind: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_concurrency=2)(Grader)
    pool = ActorPool[VideoBatch[str], tuple[int, list[Any]]](
        ray, lambda: kind.remote(begin, threads), _give_up, workers=workers
    )
    done: dict[int, list[Any]] = {}
    for first, graded in pool.run(parts, threading.Event()):
        done[first] = graded
        yield [one for number in sorted(done) for one in done[number]]


def _give_up(batch: VideoBatch[str], why: str) -> tuple[int, list[Any]]:
    raise UserError(f"the batch from prompt {batch.first} on: {why}")
