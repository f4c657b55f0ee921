"""Cross-origin access (CORS): which pages of other origins may use the server and read its answers."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
SENT = ("Authorization", "Content-Type", "Range", "If-Range", "traceparent", "tracestate")
"""Headers that a page may set."""
SHOWN = (
    "Retry-After", "Accept-Ranges", "Content-Range", "Content-Length", "Content-Disposition", "ETag",
    "X-Sequence-Number",
)  # fmt: skip
"""Headers of an answer that a page may read, beside those that browsers always show."""


class CrossOrigin(CORSMiddleware):
    """The layer around the access checks.

    A browser's preflight request has no key, and refusals must be readable too. Requests from origins that
    are not named only meet the access checks."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """Pages of `origins`, such as `https://example.org`, may use `app`."""
        super().__init__(
            app, allow_origins=origins, allow_methods=METHODS, allow_headers=SENT, expose_headers=SHOWN
        )
        self.allow_private_network = (
            True  # a public page may use a server in a private network, if it is named
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a page of an origin that is named, and let others through."""
        if scope["type"] == "http" and Headers(scope=scope).get("origin") in self.allow_origins:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)
