"""A server of several replicas over the machines of a cluster, whose number follows the load."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from plugins.errors import UserError
from runtime.cluster.replica import Replica
from runtime.cluster.table import Load, ReplicaTable
from runtime.planning.job import Job
from runtime.serve.edge.logs import log_to_stderr
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing

TABLE = "videomla-table"
"""The name of the actor that holds the table."""
WATCH_SECONDS = 1.0
IDLE_LOOKS = 60
"""Checks in a row, one a second, that find a replica idle before it is ended."""
START_SECONDS = 300.0
"""Seconds that a replica has to start: loading a model from a network's disk takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The number of a service's replicas, and the resources of each."""

    least: int
    most: int
    cpus: int
    """CPUs that the cluster reserves for each replica."""
    gpus: float


class Service:
    """A context manager: starts the replicas, and at its end stops them with all states on disk."""

    def __init__(
        self, ray: Any, job_of: Callable[[], Job], settings: ServeSettings, size: Size, *,
        memory: str | None, log_level: str, tracing_of: Callable[[], Tracing] = Tracing,
    ) -> None:  # fmt: skip
        """Describe the service, which starts when the context is entered; see `Replica` for the arguments."""
        self._ray, self._size = ray, size
        # Behind the ingress they let nobody in but each other, who have the key of the store.
        inner = replace(settings, port=0, api_keys=(secrets.token_urlsafe(32),), origins=())
        self._table = ray.remote(num_cpus=0, max_restarts=-1)(ReplicaTable).options(name=TABLE).remote()
        kind: Any = ray.remote(
            num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=-1, max_concurrency=4
        )(_ReplicaHere)  # fmt: skip
        told = {"memory": memory, "log_level": log_level, "tracing_of": tracing_of}
        self._new = partial(kind.remote, job_of, inner, **told)
        self.replicas: list[Any] = []
        self._ended = threading.Event()
        self._idle: dict[str, int] = {}
        self._watching = threading.Thread(target=self._watch, name="replicas", daemon=True)

    def __enter__(self) -> Service:
        """Start the least number of replicas; returns when all are there.

        Raises:
            UserError: if one does not come.
        """
        self.replicas = [self._new() for _ in range(self._size.least)]
        try:
            self._ray.get([one.address.remote() for one in self.replicas], timeout=START_SECONDS)
        except self._ray.exceptions.RayError as error:
            self._end()
            why = str(getattr(error, "cause", error)).strip().splitlines()[-1]
            raise UserError(f"a replica did not start: {why}") from error
        self._watching.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End all replicas, which have their states on disk then."""
        self._ended.set()
        self._watching.join()
        self._end()

    def _end(self) -> None:
        ending = [one.drain.remote() for one in self.replicas]
        self._ray.wait(ending, num_returns=len(ending), timeout=30.0)
        for actor in (*self.replicas, self._table):
            self._ray.kill(actor)

    async def find(self, session: str | None, failed: Collection[str], *, begins: bool = True) -> str | None:
        """See `ReplicaTable.find`; None while the table is begun anew."""
        found: str | None = None
        with suppress(self._ray.exceptions.RayError):
            found = await self._table.find.remote(session, list(failed), begins=begins)
        return found

    async def everyone(self) -> Collection[str]:
        """The addresses of all replicas."""
        with suppress(self._ray.exceptions.RayError):
            return list(await self._table.loads.remote())
        return []

    # Their number.

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            with suppress(
                self._ray.exceptions.RayError
            ):  # the table has died: start a new one, which the replicas' reports fill
                self._fit(self._ray.get(self._table.loads.remote()))

    def _fit(self, loads: dict[str, Load]) -> None:
        """Begin another replica, or end one."""
        if len(loads) < len(self.replicas):
            return  # a replica is still starting
        taken = all(len(one.sessions) >= one.places for one in loads.values())
        if taken and len(self.replicas) < self._size.most:
            self.replicas.append(self._new())
        self._shrink(loads)

    def _shrink(self, loads: dict[str, Load]) -> None:
        """End one that had nothing to do for long, if there are more than the least."""
        idle = {address for address, load in loads.items() if not load.sessions}
        self._idle = {address: self._idle.get(address, 0) + 1 for address in idle}
        bored = [address for address, looks in self._idle.items() if looks >= IDLE_LOOKS]
        if not bored or len(self.replicas) <= self._size.least:
            return
        addresses = self._ray.get([one.address.remote() for one in self.replicas])
        leaving = self.replicas.pop(addresses.index(bored[0]))
        self._ray.get(leaving.drain.remote())
        self._ray.kill(leaving)
        self._ray.get(self._table.leave.remote(bored[0]))


class _ReplicaHere(Replica):
    """A replica in a process of its own, at the address by which the cluster knows its machine."""

    def __init__(
        self, job_of: Callable[[], Job], settings: ServeSettings, *, log_level: str, **told: Any
    ) -> None:
        import ray

        log_to_stderr(log_level)
        table, host = ray.get_actor(TABLE), ray.util.get_node_ip_address()
        super().__init__(job_of, replace(settings, host=host), table.report.remote, **told)
