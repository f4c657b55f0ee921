"""Access checks: host names, origins, keys, and the size, pace and number of requests."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.edge.errors import ApiError, answer
from runtime.serve.edge.logs import log
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Answer, Tracing

SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/", "/health", "/health/live", "/health/ready")
"""Paths that need no key: the page, which holds no secrets, and the health of the server."""
PROTOCOL, KEY = "vmla.video", "vmla.key."
"""Subprotocols of the WebSocket. A page cannot set a WebSocket's headers, so it offers its key (base64url) as
one."""
ADDRESSES = 4_096
"""The most addresses whose requests are counted, so that many addresses cannot fill memory."""
SLOWEST = 1 << 16
"""Bytes per second at which a large body must arrive, at least."""
SHIELDS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)
"""Headers of every answer, by which browsers load and run nothing but what this server sends."""

RELAYED = "x-vmla-relay"
"""The header that carries the key of servers that share a store."""


class RateLimiter:
    """Limits the requests of each address: so many in a minute, which may also come all at once."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> int | None:
        """Count a request; None if it may be made, else the seconds to wait."""
        now = self._clock()
        left, since = self._left.pop(address, (float(self._most), now))
        left = min(self._most, left + (now - since) * self._most / 60)
        if len(self._left) >= ADDRESSES:
            self._left.pop(next(iter(self._left)))
        self._left[address] = (left - 1 if left >= 1 else left, now)
        return None if left >= 1 else int((1 - left) * 60 / self._most) + 1


class AccessChecks:
    """The layer of access checks: a request that it refuses reaches neither routes nor streams."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, tracing: Tracing) -> None:
        self._app, self._settings, self._metrics, self._tracing = app, settings, metrics, tracing
        self._limiter = RateLimiter(settings.limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with a refusal."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        with self._tracing.request(scope) as answered:
            await self._answer(scope, receive, _noting(send, answered))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            self._metrics.refused.labels(error.code).inc()
            await _refuse(scope, receive, send, error)
            return
        if scope["type"] == "http":
            receive, send = self._bounded(scope, receive), _shielded(send)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, settings = Headers(scope=scope), self._settings
        if was_relayed(headers, settings):  # another server's access checks have let it in
            return
        host = _split(f"//{headers.get('host', '')}")
        if host is None or (settings.hosts is not None and host.hostname not in settings.hosts):
            raise ApiError(403, "wrong_host", "this server answers only to its own host name")
        socket = scope["type"] == "websocket"
        changes = socket or scope["method"] not in SAFE
        origin = headers.get("origin")
        if changes and origin is not None and not self._at_home(origin, host.netloc):
            raise ApiError(403, "wrong_origin", "pages of this origin may not use the server")
        if settings.api_keys and not self._is_open(scope) and not self._has_key(headers):
            raise ApiError(401, "no_key", "send an API key: Authorization: Bearer ...")
        if changes and (wait := self._limiter.take((scope.get("client") or ("?",))[0])) is not None:
            raise ApiError(429, "too_fast", f"too many requests; wait {wait} s", retry_after=wait)
        if not socket:
            self._check_length(headers, scope["path"])

    def _at_home(self, origin: str, host: str) -> bool:
        page = _split(origin)
        here = page is not None and page.netloc != "" and page.netloc == host
        return here or origin in self._settings.origins

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        return scope["type"] == "http" and (scope["path"] in OPEN or scope["path"].startswith("/page/"))

    def _has_key(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        offered = [given] if kind.lower() == "bearer" else []
        for name in headers.get("sec-websocket-protocol", "").split(","):
            if name.strip().startswith(KEY):
                offered.append(_decoded(name.strip().removeprefix(KEY)))
        keys = self._settings.api_keys
        return any(hmac.compare_digest(o.encode(), key.encode()) for o in offered for key in keys)

    def _most(self, path: str) -> int | None:
        """Bytes that a body may have; a state has a limit of its own, which its route sets."""
        return None if path.endswith("/state") else self._settings.limits.body_bytes

    def _check_length(self, headers: Headers, path: str) -> None:
        length, most = headers.get("content-length"), self._most(path)
        if most is not None and length is not None and length.isdigit() and int(length) > most:
            raise too_large(most)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` with a limit on the body's size, and one on the wait for each part of it."""
        most, count, more = self._most(scope["path"]), 0, True
        due = time.monotonic() + self._settings.limits.request_seconds

        async def bounded() -> Message:
            nonlocal count, more
            if not more:
                return await receive()
            try:
                left = due + count / SLOWEST - time.monotonic()
                message = await asyncio.wait_for(receive(), max(left, 0))
            except TimeoutError as error:
                raise ApiError(408, "too_slow", "the request did not arrive in time") from error
            more = bool(message.get("more_body"))
            count += len(message.get("body", b""))
            if most is not None and count > most:
                raise too_large(most)
            return message

        return bounded


def was_relayed(headers: Headers, settings: ServeSettings) -> bool:
    """Whether a request comes from another server that shares the store."""
    given, key = headers.get(RELAYED), settings.relay_key
    return given is not None and key is not None and hmac.compare_digest(given.encode(), key.encode())


def too_large(most: int) -> ApiError:
    """The refusal of a body with more than `most` bytes."""
    return ApiError(413, "too_large", f"the request has more than {most:,} bytes")


def _split(url: str) -> SplitResult | None:
    """The parts of an address; None if it is malformed."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return ""


def _noting(send: Send, answered: Answer) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            answered.status = message["status"]
        await send(message)

    return noting


def _shielded(send: Send) -> Send:
    async def shielded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *SHIELDS]
        await send(message)

    return shielded


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    """Answer a refused request; a WebSocket is refused in its handshake."""
    if scope["type"] == "http":
        await answer(error)(scope, receive, _shielded(send))
        return
    log("websocket refused", status=error.status_code, code=error.code)
    await receive()  # a WebSocket is refused in its handshake
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        return
    response = answer(error)
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": response.body})
