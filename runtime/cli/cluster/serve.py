"""`vmla-serve --ray`: checks the options, starts the replicas and serves until a signal comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import click

from plugins.errors import UserError
from runtime.cli.cluster.videos import with_absolute_paths
from runtime.cluster.ingress import ingress
from runtime.cluster.service import Service, Size
from runtime.planning.job import Job
from runtime.serve.disk.store import read_relay_key, saved_streams_notice
from runtime.serve.edge.logs import log_to_stderr
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing, traced_to
from runtime.serve.listen import open_socket, server_for, url_of
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say
from vmla.cluster.library import connect, room_for


def serve_ray(
    options: dict[str, Any], job_of: Callable[[dict[str, Any]], Job],
    settings_of: Callable[[dict[str, Any], Job], ServeSettings], stop: Stop,
) -> None:  # fmt: skip
    """Serve from replicas until a signal comes; by then the states of all streams are on disk.

    Args:
        options: the command's options, by name.
        job_of: returns a job for the model that the options name; called in every replica.
        settings_of: returns the server's settings for those options and that job.
        stop: set by the signal that ends the server.
    """
    numbers, options = _numbers(options["replicas"]), with_absolute_paths(options)
    job, ray = job_of(options), connect()
    settings = settings_of(options, job)
    size = _size(numbers, options["cpus_per_replica"] or job.threads, job, ray.cluster_resources())
    tracing_of = Tracing if options["trace_to"] is None else partial(traced_to, options["trace_to"])
    log_to_stderr(options["log_level"])
    with closing(tracing_of()) as tracing, closing(open_socket(settings)) as listening:
        key = read_relay_key(settings.store)
        service = Service(
            ray, partial(job_of, options), settings, size, memory=options["memory"],
            log_level=options["log_level"], tracing_of=tracing_of,
        )  # fmt: skip
        with stop.polled(), service:
            say(*job.what_runs(), f"replicas: {size.least}", f"page: {url_of(listening)}/")
            app = ingress(settings, key, service.find, service.everyone, tracing)
            server_for(app, settings, stop).run(sockets=[listening])
    stop.last_words = lambda: [saved_streams_notice(settings.store)]
    if stop.is_set():
        say(*stop.parting(f"stopped by {stop.name}"), err=True)
    sys.exit(stop.status)


def _size(numbers: tuple[int, int] | None, cpus: int, job: Job, resources: dict[str, float]) -> Size:
    """The number of replicas and the resources of each; without `numbers`, as many as fit.

    Raises:
        UserError: if the cluster has no room for the smallest number.
    """
    gpus = 1.0 if job.device.type == "cuda" else 0.0
    room = room_for(resources, cpus=cpus, gpus=gpus)
    least, most = numbers or (room, room)
    if least > room:
        raise UserError(f"the Ray cluster has room for {room} replicas and not {least}; add a machine")
    return Size(least=least, most=most, cpus=cpus, gpus=gpus)


def _numbers(text: str | None) -> tuple[int, int] | None:
    """The least and the greatest number of replicas, from text such as `2` or `1:4`.

    Raises:
        UsageError: if the text has neither form.
    """
    if text is None:
        return None
    least, _, most = text.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise click.UsageError(f"--replicas {text}: give a number, or LEAST:MOST such as 1:4")
    return int(least), int(most or least)
