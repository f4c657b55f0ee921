"""Forwards a request to another server and its answer back, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.types import Receive, Scope, Send

from runtime.serve.edge.access import RELAYED, SHIELDS
from runtime.serve.edge.errors import ApiError, answer

OURS = {
    b"host", b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"origin",
    b"authorization", b"proxy-authorization", RELAYED.encode(),
}  # fmt: skip
"""Headers that are not passed on: those of the connection, and those that the access checks have read."""
ANSWERED = {b"connection", b"keep-alive", b"transfer-encoding", b"date", *(name for name, _ in SHIELDS)}
"""Headers of the other server's answer that are not passed back: this server sets its own."""
CONNECT_SECONDS = 2.0
"""Longest wait for a connection to another server. Answers have no time limit: streams have none."""


class Relay:
    """Passes requests on, with the key by which servers that share a store recognise each other."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    async def pass_on(self, address: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Let the server at `address` answer; False if it is unreachable and nothing was sent or read."""
        url = httpx.URL(address, raw_path=scope["raw_path"] + b"?" + scope["query_string"])
        headers = [(name, value) for name, value in scope["headers"] if name not in OURS]
        body = _Body(receive)
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        # A client for this request alone: a shared one would hold connections of servers and loops that have
        # ended.
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            asked = client.build_request(
                scope["method"], url, headers=[*headers, (RELAYED.encode(), self._key)],
                content=body.pieces() if has_body else None,
            )  # fmt: skip
            begun = False
            try:
                response = await client.send(asked, stream=True)
                begun = True
                await _answer(response, receive, send)
            except httpx.HTTPError:
                if begun:
                    raise
                if not body.taken:
                    return False
                lost = ApiError(503, "lost", "the server that makes this is gone; ask again", retry_after=1)
                await answer(lost)(scope, receive, send)
        return True


class _Body:
    """The body of a request."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.taken = receive, False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces of the body as they arrive."""
        self.taken, more = True, True
        while more:
            message = await self._receive()
            more = bool(message.get("more_body"))
            yield message.get("body", b"")


async def _answer(response: httpx.Response, receive: Receive, send: Send) -> None:
    """Send the other server's answer for as long as the client reads it."""
    gone = asyncio.create_task(_gone(receive))
    try:
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        headers = [(name, value) for name, value in headers if name not in ANSWERED]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for piece in response.aiter_raw():
            if gone.done():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        await response.aclose()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
