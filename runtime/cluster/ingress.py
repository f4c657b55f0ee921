"""The one address of a cluster of replicas: each request is passed on to the replica that has its session.

Not Ray Serve's own: there a replica's messages go through a queue without bounds, so that a viewer who takes
nothing no longer slows its own stream, and fills the proxy's memory. This one has our access checks, limits
and back-pressure, and a WebSocket outlives the replica that it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Protocol

from fastapi import WebSocket
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from runtime.cluster.figures import figures
from runtime.serve.edge.access import PROTOCOL, AccessChecks
from runtime.serve.edge.errors import ApiError, answer
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.origins import CrossOrigin
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing
from runtime.serve.shared.live import PATH, LiveRelay, refuse
from runtime.serve.shared.peers import OF_A_STREAM, OF_ALL
from runtime.serve.shared.relay import Relay

Everyone = Callable[[], Awaitable[Collection[str]]]
TRIES = 100
TRY_SECONDS = 0.1
"""How often, and how many seconds apart, a replica is looked for before a request is refused."""


class Find(Protocol):
    """See `ReplicaTable.find`."""

    def __call__(
        self, session: str | None, failed: Collection[str], *, begins: bool = True
    ) -> Awaitable[str | None]:
        """The address of a replica, or None."""


class Ingress:
    """An ASGI application without a model."""

    def __init__(self, settings: ServeSettings, key: str, find: Find, everyone: Everyone) -> None:
        """Find replicas by `find`, and all of them by `everyone`; they know this one by `key`."""
        self._settings, self._key, self._find, self._everyone = settings, key, find, everyone
        self._relay = Relay(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or viewer."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["path"] == PATH:
            await self._watch(WebSocket(scope, receive, send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health/live":
            await JSONResponse({"status": "live"})(scope, receive, send)
            return
        if scope["path"] == "/metrics":
            text = await figures(await self._everyone(), self._key)
            await Response(text, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
            return
        found = OF_A_STREAM.fullmatch(scope["path"])
        name = None if found is None else found[1]
        begins = scope["method"] == "POST" and scope["path"] in OF_ALL
        failed: list[str] = []
        for _ in range(TRIES):
            address = await self._find(name, failed, begins=begins)
            if address is not None and await self._relay.pass_on(address, scope, receive, send):
                return
            if address is not None:
                failed.append(address)
            elif scope["path"].startswith("/health"):
                break
            else:
                failed.clear()
                await asyncio.sleep(TRY_SECONDS)
        error = ApiError(503, "not_ready", "no replica answers", retry_after=5)
        await answer(error)(scope, receive, send)

    async def _watch(self, socket: WebSocket) -> None:
        spoken, limits = socket.scope.get("subprotocols", []), self._settings.limits
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in spoken else None)
        try:
            message = await asyncio.wait_for(socket.receive(), limits.start_seconds)
            if message["type"] != "websocket.disconnect":
                relay = LiveRelay(socket, self._find, self._key, stall_seconds=limits.stall_seconds)
                await relay.run(message.get("text") or "")
        except TimeoutError:
            await refuse(socket, ApiError(408, "start_timeout", "no session.start came"))
        except ApiError as error:
            await refuse(socket, error)
        finally:
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.close()


def ingress(
    settings: ServeSettings, key: str, find: Find, everyone: Everyone, tracing: Tracing | None = None
) -> ASGIApp:
    """The application behind its access checks; `tracing` traces requests, and None traces nothing."""
    inner = Ingress(settings, key, find, everyone)
    return CrossOrigin(AccessChecks(inner, settings, Metrics(), tracing or Tracing()), settings.origins)


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan of the application, which has nothing to start or stop."""
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})
