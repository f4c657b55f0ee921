"""Passes requests and viewers on to the server that makes the stream that they ask for."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastapi import WebSocket
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.serve.edge.access import was_relayed
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.shared.live import LiveRelay
from runtime.serve.shared.relay import Relay
from runtime.serve.shared.streams import SharedStreams

OF_A_STREAM = re.compile(r"/v1/(?:sessions|videos)/([^/]+)(?:/.*)?")
OF_ALL = ("/v1/sessions", "/v1/videos")


class Peers:
    """The servers that share a store, as one of them sees the others."""

    def __init__(self, streams: SharedStreams, settings: ServeSettings) -> None:
        assert settings.shared is not None
        assert settings.relay_key is not None
        self.streams, self.settings = streams, settings
        self._here, self._key = settings.shared, settings.relay_key
        self.relay = Relay(self._key)

    def is_remote(self, name: str, connection: HTTPConnection) -> bool:
        """Whether another server makes the stream; a request passed on once is not passed on again."""
        if not was_relayed(connection.headers, self.settings) and self.streams.holder(name) is not None:
            return True
        self.streams.refresh(name)
        return False

    async def watch(self, socket: WebSocket, start: str) -> None:
        """Serve a viewer, whose first message is `start`, from whichever server makes its stream.

        Raises:
            ApiError: if no server continues the stream.
        """
        await LiveRelay(socket, self.find, self._key, stall_seconds=self._stall).run(start)

    async def find(self, name: str | None, failed: Collection[str]) -> str | None:
        """The address of the server that makes the stream, other than those that `failed`; else our own."""
        holder = None if name is None else self.streams.holder(name)
        return self._here if holder is None or holder in failed else holder

    @property
    def _stall(self) -> float:
        return self.settings.limits.stall_seconds


class RelayMiddleware:
    """The layer of the application between its access checks and its routes."""

    def __init__(self, app: ASGIApp, peers: Peers) -> None:
        self._app, self._peers = app, peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or serve it here after reading the stream from disk."""
        if scope["type"] == "http" and scope["path"] in OF_ALL:
            self._peers.streams.refresh_all()
        if scope["type"] == "http" and (found := OF_A_STREAM.fullmatch(scope["path"])) is not None:
            relayed = was_relayed(Headers(scope=scope), self._peers.settings)
            holder = None if relayed else self._peers.streams.holder(found[1])
            if holder is not None and await self._peers.relay.pass_on(holder, scope, receive, send):
                return
            self._peers.streams.refresh(found[1])
        await self._app(scope, receive, send)
