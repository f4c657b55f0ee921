"""Opens the socket that the server listens on, and runs the application in uvicorn."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from plugins.errors import UserError
from runtime.serve.edge.connections import BoundedWebSocket, SlowReaderWatchdog, TimeLimitedHttp
from runtime.serve.edge.settings import ServeSettings

SEND_BUFFER = 1 << 18
"""Bytes of the system's send buffer for each viewer: room for a few chunks, not for a minute of video."""
CONNECTIONS = 1_024
"""Upper bound of connections; also at most half of the process's file descriptors, because streams need
some."""
TICKS = 10
"""How often uvicorn calls `on_tick`, per second."""
Drain = Callable[[], Awaitable[None]]
"""Releases all streams, so that other servers can continue them."""


def open_socket(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address of `settings`; port 0 picks a free one.

    Raises:
        UserError: if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        raise UserError(f"cannot listen at {where}: {error.strerror}; choose another --port") from error
    return listening


def url_of(listening: socket.socket) -> str:
    """The address of a socket as a URL for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class StoppableServer(uvicorn.Server):
    """uvicorn that ends when `stop` is set, handles no signals itself, and has a `watch`."""

    def __init__(
        self, config: uvicorn.Config, stop: threading.Event, watch: SlowReaderWatchdog, drain: Drain | None
    ) -> None:
        super().__init__(config)
        self._stop, self._watch, self._drain = stop, watch, drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise each again at the end, so that it would count twice."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to end."""
        if self._stop.is_set() and self._drain is not None and not self.should_exit:
            await self._drain()  # viewers are still connected here, and will join another server
        self.should_exit = self.should_exit or self._stop.is_set()
        if counter % TICKS == 0:
            self._watch.look(self.server_state.connections)  # type: ignore[arg-type]
        return await super().on_tick(counter)


def server_for(
    app: ASGIApp, settings: ServeSettings, stop: threading.Event | None = None, *, drain: Drain | None = None
) -> StoppableServer:
    """uvicorn for `app`, to be run on a socket of `open_socket` until `stop` is set and it has drained."""
    limits, most = settings.limits, min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    # With `most` connections uvicorn answers HTTP with 503 but still accepts WebSockets, so `TimeLimitedHttp`
    # closes every connection beyond that number.
    timely = type("Timely", (TimeLimitedHttp,), {"patience": limits.request_seconds, "most": most})
    options: dict[str, Any] = {
        "http": timely,
        "ws": BoundedWebSocket,
        "ws_max_size": limits.message_bytes,
        "ws_max_queue": 8,
        "ws_per_message_deflate": False,  # encoded video would not get smaller
        "ws_ping_interval": 20.0,
        "ws_ping_timeout": 20.0,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 5,
        "limit_concurrency": most,
        "backlog": CONNECTIONS,
        "server_header": False,
        "log_config": None,
        "access_log": False,
        "lifespan": "on",
        "loop": "asyncio",  # not uvloop, even if it is installed
    }
    stop = threading.Event() if stop is None else stop
    return StoppableServer(
        uvicorn.Config(app, **options), stop, SlowReaderWatchdog(limits.stall_seconds), drain
    )
