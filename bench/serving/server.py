"""A server in a thread of the process that measures it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.types import ASGIApp

from plugins.errors import UserError
from runtime.planning.job import Job
from runtime.serve.app import create_app
from runtime.serve.edge.settings import Limits, ServeSettings
from runtime.serve.listen import open_socket, server_for

ROOM = 1 << 50
"""Bytes of memory that the server is told it has, so that the benchmark alone decides the number of
streams."""
LIMITS = Limits(requests_per_minute=10**9, viewers=10**6)
LEASE = 1.0
"""Seconds that a stream stays in memory without viewers, unless its owner asks for more."""
PATIENCE = 600.0
"""Seconds that a server may take to start or to end."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running server: its port, a client, and the length of a chunk."""

    port: int
    http: httpx.Client
    chunk_seconds: float


@contextmanager
def running(job: Job, store: Path) -> Iterator[Running]:
    """Run a server of the model of `job` on a free port of this machine, without limits on rates.

    Raises:
        UserError: if it does not start.
    """
    settings = settings_for(store)
    app = create_app(job, settings, memory=ROOM)
    with answering(app, settings) as (port, http):
        yield Running(port=port, http=http, chunk_seconds=app.state.server.streams.worker.chunk_seconds)


def settings_for(store: Path) -> ServeSettings:
    """Settings of a server whose streams lie in `store`, without limits on rates."""
    return ServeSettings(store=store, name="bench", port=0, limits=LIMITS, lease_seconds=LEASE)


@contextmanager
def answering(app: ASGIApp, settings: ServeSettings) -> Iterator[tuple[int, httpx.Client]]:
    """Run `app` on a free port of this machine; yields the port and a client for it.

    Raises:
        UserError: if it does not start.
    """
    # The server's log is for its operator; a benchmark has output of its own.
    logging.getLogger("vmla.serve").setLevel(logging.ERROR)
    listening = open_socket(settings)
    server = server_for(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        _wait_for(server, thread)
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            yield port, http
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()


def _wait_for(server: uvicorn.Server, thread: threading.Thread) -> None:
    while not server.started:
        if not thread.is_alive():
            raise UserError("the server did not start")
        time.sleep(0.01)
