"""One replica of the server: our application on a port of its own, over the folder that all of them share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plugins.errors import UserError
from runtime.cluster.table import Load
from runtime.device.memory import allowed_bytes
from runtime.planning.job import Job
from runtime.serve.app import create_app
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing
from runtime.serve.listen import open_socket, server_for

REPORT_SECONDS = 0.2
"""Pause between two reports of a replica's sessions and load to the cluster's table."""


class Replica:
    """A server that starts when it is made; its methods may be called from any thread."""

    def __init__(
        self, job_of: Callable[[], Job], settings: ServeSettings, report: Callable[[str, Load], Any], *,
        memory: str | None, tracing_of: Callable[[], Tracing] = Tracing,
    ) -> None:  # fmt: skip
        """Load the model and listen.

        Args:
            job_of: any video of the model; called here.
            settings: of the server; `host` is the address of this machine for the others.
            report: told the load of this replica, several times a second.
            memory: for weights and all streams, as options say it.
            tracing_of: what is told what it does; called here.
        """
        job = job_of()
        self._listening = open_socket(settings)
        self.address_ = f"http://{settings.host}:{self._listening.getsockname()[1]}"
        settings = replace(settings, shared=self.address_)
        memory_bytes = allowed_bytes(memory, job.device)
        app = create_app(job, settings, memory=memory_bytes, tracing=tracing_of())
        self._streams = app.state.server.streams
        self._stop, self._report = threading.Event(), report
        self._server = server_for(app, settings, self._stop, drain=self._streams.drain)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listening]}, name="server", daemon=True
        )
        self._thread.start()
        threading.Thread(target=self._tell, name="load", daemon=True).start()

    def address(self) -> str:
        """Return the URL at which others reach it.

        Raises:
            UserError: if it could not start; its log says why.
        """
        while not self._server.started:
            if not self._thread.is_alive():
                raise UserError("a replica could not start; its log says why")
            self._stop.wait(0.02)
        return self.address_

    def process(self) -> int:
        """The id of its process."""
        return os.getpid()

    def drain(self) -> None:
        """Release all sessions with their states on disk, and stop; return when that is done."""
        self._stop.set()
        self._thread.join()

    def _tell(self) -> None:
        while self._thread.is_alive():
            there = frozenset(one.id for one in self._streams if one.resident)
            load = Load(sessions=there, places=self._streams.worker.places, ready=self._streams.ready)
            self._report(self.address_, load)
            self._thread.join(REPORT_SECONDS)
