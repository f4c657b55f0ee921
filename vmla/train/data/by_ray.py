"""`--ray`: the shards of a set of clips, made over the machines of a Ray cluster.

Each worker has loaded its models and makes one whole file after the other into a folder that all machines
see. Frames stay where they are rendered or read: a clip of them is a hundred times its latents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from plugins.errors import UserError
from vmla.cluster.library import connect, room_for
from vmla.cluster.pool import ActorPool

Shard = TypeVar("Shard")
Make = Callable[[Shard], list[str]]
"""Makes a shard, and returns lines to report about it."""


class ShardMaker:
    """The actor of one worker: it loads its models once, and then makes one shard after the other."""

    def __init__(self, begin: Callable[[], Make[Any]], threads: int) -> None:
        """Load the models by `begin`; compute on as many `threads` as one machine alone would."""
        torch.set_num_threads(threads)
        self._make = begin()

    def make(self, shard: Any) -> list[str]:
        """Make `shard`, and return lines to report about it."""
        return self._make(shard)

    def stop(self) -> None:
        """A shard is not stopped: the pool ends its workers."""


def make_shards(
    begin: Callable[[], Make[Shard]], shards: Sequence[Shard], report: Callable[[str], None], *,
    processors: int, device: str,
) -> None:  # fmt: skip
    """Make all `shards`, each whole and by one worker.

    Args:
        begin: called once in each worker's process; loads the model that makes the shards.
        shards: the shards to make.
        report: called with each line of progress.
        processors: CPU cores that Ray reserves for a worker, besides those that compute with it.
        device: where a worker computes; on "cuda" each has a GPU of its own.

    Raises:
        UserError: if Ray is not installed, the cluster has no room, or a worker fails.
    """
    if not shards:
        return
    ray, threads = connect(), torch.get_num_threads()
    cpus, gpus = threads + processors, float(torch.device(device).type == "cuda")
    workers = min(len(shards), room_for(ray.cluster_resources(), cpus=cpus, gpus=gpus))
    kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(ShardMaker)
    pool = ActorPool[Shard, list[str]](ray, lambda: kind.remote(begin, threads), _give_up, workers=workers)
    for done, lines in enumerate(pool.run(shards, threading.Event()), start=1):
        for line in (*lines, f"{done} of {len(shards)} shards, by {workers} workers"):
            report(line)


def absolute_if_local(checkpoint: str) -> str:
    """The name of a checkpoint for a process in any folder."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint


def _give_up(shard: object, why: str) -> list[str]:
    raise UserError(f"a shard was not made: {why}")
