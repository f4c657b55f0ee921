"""Relays a viewer to the server that makes its stream, and to the next one if that server ends.

To the viewer it is one connection: when the server is lost, the stream is joined again wherever it is made
now, with the chunk that is wanted next; nothing is missed, nothing comes twice, and changes of the prompt
that no chunk has shown yet are requested again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from runtime.serve.edge.access import RELAYED
from runtime.serve.edge.errors import ApiError
from runtime.serve.edge.tracing import CONTEXT

Find = Callable[[str | None, Collection[str]], Awaitable[str | None]]
"""Finds the server of a stream by its name, passing over addresses that failed; None if there is none yet."""
PATIENCE = 30.0
"""Seconds to wait for some server to continue a stream."""
RETRY_SECONDS = 0.02
"""Seconds between two attempts to find the server of a stream and to join the stream there."""
AGAIN = ("not_ready", "held_elsewhere", "lost")
"""Codes of errors that go away by themselves while a stream moves between servers."""
MOST_ASKED = 64
"""How many requested changes are remembered."""
PATH = "/v1/realtime/video"


class _GoneError(Exception):
    """The viewer has gone, or reads nothing."""


class LiveRelay:
    """Relays one viewer to whichever server makes its stream."""

    def __init__(self, socket: WebSocket, find: Find, key: str, *, stall_seconds: float) -> None:
        """Serve the viewer at `socket`, which is accepted; the servers recognise each other by `key`."""
        self._socket, self._find, self._stall = socket, find, stall_seconds
        within = {name: socket.headers[name] for name in CONTEXT if name in socket.headers}
        self._headers = {RELAYED: key, **within}
        self._heard: asyncio.Queue[str | None] = asyncio.Queue(8)
        self._session: str | None = None
        self._next: int | None = None
        self._sent = 0
        self._introduced = self._over = self._stopped = False
        self._asked: dict[str, str] = {}
        """Changes of the prompt that no chunk has shown yet, by their ids."""
        self._repeated: set[str] = set()

    async def run(self, start: str) -> None:
        """Serve the viewer, whose first message is `start`, until the stream is over or the viewer has left.

        Raises:
            ApiError: if no server continues the stream.
        """
        self._start = start
        said = _parsed(start)
        name, number = said.get("session_id"), said.get("sequence_number")
        self._session = name if isinstance(name, str) else None  # any other message is refused by the server
        self._next = number if type(number) is int else None
        reading = asyncio.create_task(self._read())
        with suppress(_GoneError):
            try:
                await self._follow()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _follow(self) -> None:
        """Join the stream wherever it is made, until it is over."""
        failed: list[str] = []
        since, sent = time.monotonic(), self._sent
        while not self._over:
            address = await self._find(self._session, failed)
            if address is not None and not await self._join(address):
                failed.append(address)
            if self._sent > sent:
                since, sent = time.monotonic(), self._sent
                failed.clear()
            if not self._over:
                if time.monotonic() - since > PATIENCE:
                    raise ApiError(503, "unavailable", "no server continues this stream", retry_after=5)
                await asyncio.sleep(RETRY_SECONDS)
                if address is None:
                    failed.clear()

    async def _join(self, address: str) -> bool:
        """Relay from the server at `address` until it closes the connection; False if it was not reached."""
        url = "ws" + address.removeprefix("http") + PATH
        reached = False
        try:
            async with connect(
                url, additional_headers=self._headers, max_size=None, compression=None, max_queue=4,
                open_timeout=3, close_timeout=0.2, ping_interval=5, ping_timeout=10, proxy=None,
            ) as server:  # fmt: skip
                reached = True
                await self._both_ways(server)
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == 1000:
                self._over = True
        except (OSError, WebSocketException):
            pass  # the next server that is found continues
        return reached

    async def _both_ways(self, server: ClientConnection) -> None:
        await server.send(self._greeting())
        self._repeated = set(self._asked)
        for message in self._asked.values():
            await server.send(message)
        if self._stopped:
            await server.send(json.dumps({"type": "session.stop"}))
        down, up = asyncio.create_task(self._down(server)), asyncio.create_task(self._up(server))
        try:
            await asyncio.wait((down, up), return_when=asyncio.FIRST_COMPLETED)
            if not down.done() and up.exception() is None:
                raise _GoneError
            await down  # a server that does not read does not send either
        finally:
            for task in (down, up):
                task.cancel()
            await asyncio.gather(down, up, return_exceptions=True)

    def _greeting(self) -> str:
        if not self._introduced:
            return self._start
        again = {name: v for name, v in _parsed(self._start).items() if name == "streaming_buffer_seconds"}
        join = {"session_id": self._session, "sequence_number": self._next}
        return json.dumps({"type": "session.start", **again, **join})

    # From the viewer.

    async def _read(self) -> None:
        """Put the viewer's messages into a queue, and None when it has left."""
        while True:
            try:
                message = await self._socket.receive()
            except (RuntimeError, WebSocketDisconnect):
                message = {"type": "websocket.disconnect"}
            if message["type"] == "websocket.disconnect":
                await self._heard.put(None)
                return
            await self._heard.put(message.get("text") or "")

    async def _up(self, server: ClientConnection) -> None:
        """Pass the viewer's messages on to the server; return when it has left."""
        while (text := await self._heard.get()) is not None:
            said = _parsed(text)
            if said.get("type") == "session.interaction":
                text = self._remembered(text, said)
            self._stopped = self._stopped or said.get("type") == "session.stop"
            await server.send(text)

    def _remembered(self, text: str, said: dict[str, Any]) -> str:
        """The message of a change of prompt, with an id; it is remembered in case its server is lost."""
        asked = said.get("interaction")
        if not isinstance(asked, dict):
            return text
        name = asked.setdefault("event_id", secrets.token_hex(8))
        text = json.dumps(said)
        if isinstance(name, str) and len(self._asked) < MOST_ASKED:
            self._asked[name] = text
        return text

    # To the viewer.

    async def _down(self, server: ClientConnection) -> None:
        """Pass the server's messages on to the viewer; return when the stream is to be joined again.

        Raises:
            ConnectionClosed: when the server closes the connection.
        """
        while True:
            event = json.loads(await server.recv())
            kind = event.get("type")
            if kind == "video.chunk_metadata":
                payload = await server.recv()
                assert isinstance(payload, bytes)
                await self._chunk(event, payload)
            elif kind == "error" and event.get("code") in (*AGAIN, *(("busy",) if self._introduced else ())):
                return
            elif not self._is_known(event):
                await self._send(event)

    def _is_known(self, event: dict[str, Any]) -> bool:
        """Whether the viewer has had this message before; remembers it for a later join."""
        kind, name = event.get("type"), event.get("event_id")
        if kind == "video.start":
            before, self._introduced = self._introduced, True
            self._session = event["session_id"]
            self._next = event["sequence_number"] if self._next is None else self._next
            return before
        if kind == "session.interaction.queued" and name in self._repeated:
            self._repeated.discard(name)
            return True
        if kind == "error" and name is not None:
            self._asked.pop(name, None)
        if kind == "session.done":
            event["chunks"] = self._sent
        return False

    async def _chunk(self, event: dict[str, Any], payload: bytes) -> None:
        number, head = event["sequence_number"], event["head_length"]
        if self._next is not None and number < self._next:
            return
        if self._sent:  # the head of the file went out with the first payload
            payload = payload[head:]
            event |= {"head_length": 0, "byte_length": len(payload)}
        event["transport_chunk_index"] = self._sent
        await self._send(event, payload)
        self._sent, self._next = self._sent + 1, number + 1
        for name in (*event["started_event_ids"], *event["superseded_event_ids"]):
            self._asked.pop(name, None)

    async def _send(self, event: dict[str, Any], payload: bytes | None = None) -> None:
        try:
            async with asyncio.timeout(self._stall):
                await self._socket.send_text(json.dumps(event))
                if payload is not None:
                    await self._socket.send_bytes(payload)
        except (TimeoutError, RuntimeError, WebSocketDisconnect) as error:
            raise _GoneError from error


def _parsed(text: str) -> dict[str, Any]:
    """A message as a JSON object; an empty one if it is not an object."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


async def refuse(socket: WebSocket, error: ApiError) -> None:
    """Send an error and close the connection; the viewer may have gone already."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(json.dumps({"type": "error", "code": error.code, "message": error.message}))
