"""Closes connections whose client sends too slowly, reads nothing or never finishes a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

FRAGMENTS = 1_024
"""Frames that a message of a WebSocket may have: its size alone would not bound empty ones."""
POLICY_VIOLATION = 1008
"""The WebSocket close code of a message that breaks a server's rules (RFC 6455, section 7.4.1)."""


class TimeLimitedHttp(H11Protocol):
    """HTTP/1.1 with a time limit for the head of each request, and an upper bound on connections."""

    patience = 30.0
    """Seconds for the head of a request."""
    most = 1_024
    """The most connections, WebSockets included; further ones are closed at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the head of the first request."""
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Start the clock when a new head begins."""
        if self._idle and self._late is None:
            self._wait()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Give the head of the next request, if one follows, its own time limit."""
        self._wait_no_more()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Stop the clock: the WebSocket protocol takes the connection over."""
        self._wait_no_more()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock of the head that was expected."""
        self._wait_no_more()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.patience, self._give_up)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self._idle and not self.transport.is_closing():
            self.transport.close()


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose client cannot fill this server's memory.

    It could send pings without reading the answers, or messages of endlessly many empty frames.
    """

    _fragments = 0

    async def send(self, message: Any) -> None:
        """Send; a handshake that is refused is complete, which uvicorn would log as an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer, unless earlier answers are still unread: one answer may serve several pings (RFC 6455)."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # drops the answer

    def handle_text(self, event: Any) -> None:
        """Take the first frame of a message of text."""
        self._fragments = 1
        super().handle_text(event)

    def handle_bytes(self, event: Any) -> None:
        """Take the first frame of a binary message."""
        self._fragments = 1
        super().handle_bytes(event)

    def handle_cont(self, event: Any) -> None:
        """Take another frame of the message, or close the connection if there are too many."""
        self._fragments += 1
        if self._fragments <= FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:
            self.frames = []
            self.conn.fail(POLICY_VIOLATION, "too many fragments")
            self.handle_parser_exception()


class Connected(Protocol):
    """A protocol of uvicorn with its transport."""

    transport: asyncio.Transport


class SlowReaderWatchdog:
    """Ends connections whose client reads nothing.

    Closing a connection is not enough: unsent data keeps it open for as long as the client does not read.
    """

    def __init__(self, patience: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow a client `patience` seconds without reading, and as long to read the rest after closing."""
        self._patience, self._clock = patience, clock
        self._since: dict[Connected, tuple[int, float]] = {}
        """Bytes that each connection has still to send (-1 at the end), and since when."""

    def look(self, connections: Iterable[Connected]) -> None:
        """Check all connections; to be called about once a second."""
        now, seen = self._clock(), {}
        for one in list(connections):
            closing, left = one.transport.is_closing(), one.transport.get_write_buffer_size()
            if not (closing or left):
                continue
            left = -1 if closing else left  # at the end, reading some of it buys no more time
            before, since = self._since.get(one, (left, now))
            seen[one] = left, since if left == before else now
            if now - seen[one][1] > self._patience:
                one.transport.abort()
        self._since = seen
