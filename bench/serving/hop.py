"""The time that a Ray cluster's address adds to a request: one replica is asked through it and directly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep

import httpx

from bench.serving.measurements import repeated
from bench.serving.server import PATIENCE, answering, settings_for
from plugins.errors import UserError
from runtime.cluster.ingress import ingress
from runtime.cluster.service import Service, Size
from runtime.planning.job import Job
from runtime.serve.disk.store import read_relay_key
from runtime.serve.edge.access import RELAYED
from vmla.cluster.library import connect, room_for

PATH = "/v1/models"


def ray_hop(job_of: Callable[[], Job], job: Job, store: Path, times: int) -> dict[str, float]:
    """Milliseconds that a request takes longer through the cluster's one address than at the replica itself.

    Args:
        job_of: makes `job` anew in the replica's process.
        job: any video of the model.
        store: an empty folder.
        times: pairs of requests that are timed.

    Raises:
        UserError: if Ray is not installed, or has no room for a replica.
    """
    ray, settings = connect(), settings_for(store)
    size = Size(least=1, most=1, cpus=job.threads, gpus=float(job.device.type == "cuda"))
    room_for(ray.cluster_resources(), cpus=size.cpus, gpus=size.gpus)
    key = read_relay_key(store)
    service = Service(ray, job_of, settings, size, memory=None, log_level="error")
    app = ingress(settings, key, service.find, service.everyone)
    with (
        service,
        answering(app, settings) as (_, outer),
        httpx.Client(base_url=_replica(service), timeout=PATIENCE, headers={RELAYED: key}) as inner,
    ):

        def added() -> float:
            return _seconds(outer) - _seconds(inner)

        added()  # unmeasured: the first request is slow
        return repeated(added, times)


def _replica(service: Service) -> str:
    """The address of the replica, once the table knows it."""
    end = perf_counter() + PATIENCE
    while not (there := asyncio.run(service.everyone())):
        if perf_counter() > end:
            raise UserError("the replica does not report")
        sleep(0.05)
    return next(iter(there))


def _seconds(client: httpx.Client) -> float:
    began = perf_counter()
    client.get(PATH).raise_for_status()
    return perf_counter() - began
