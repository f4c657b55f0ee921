"""How the server is set up, and the limits within which it serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The server's limits, in seconds, bytes and counts."""

    prompt_characters: int = 2_000
    body_bytes: int = 1 << 16
    """The largest body of a request; states have a limit of their own."""
    message_bytes: int = 1 << 16
    """The largest message on a WebSocket."""
    request_seconds: float = 30.0
    """Time for the head of a request to arrive, and again for its body."""
    requests_per_minute: int = 240
    """For one address, counting only requests that make or change something."""
    start_seconds: float = 10.0
    """Time for the first message on a WebSocket to arrive."""
    stall_seconds: float = 60.0
    """After this time a viewer that reads nothing is disconnected, or one that neither gets nor sends any."""
    faults: int = 20
    """Invalid messages after which a WebSocket is closed."""
    viewers: int = 256
    """Viewers of all streams together."""
    resident: int = 64
    """Streams in memory at once, if they fit."""
    waiting: int = 100
    """Jobs that wait in the queue; further ones are refused with 429."""
    transfers: int = 4
    """States being sent or received at once."""
    stored: int = 1_000
    """Streams and jobs on disk; a further one replaces the session that was left first."""
    spared_seconds: float = 600.0
    """Seconds for which a session is safe from that after it was last watched or asked for."""
    stream_seconds: float = 6 * 3600.0
    """The longest stream; an endless one is ended there."""
    longest_lease: float = 3600.0
    """The longest lease that may be asked for."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How the server is set up."""

    store: Path
    """The folder of the streams; nobody else writes there."""
    name: str
    """Name of the model, as clients write it."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    """A request must carry one of these; if there are none, every request is admitted."""
    origins: tuple[str, ...] = ()
    """Web pages of other origins that may use the server, such as `https://example.org`."""
    lease_seconds: float = 30.0
    """How long a stream without viewers stays in memory, unless its owner asks for another time."""
    retention_seconds: float = 24 * 3600.0
    """How long a stream or job that nobody asks for stays on disk."""
    save_every: float = 5.0
    """Seconds between two states of a stream on disk."""
    shared: str | None = None
    """Where servers that share the store reach this one, `http://10.0.0.2:8000`; None if none do."""
    relay_key: str | None = None
    """The key by which servers that share the store recognise each other."""
    limits: Limits = field(default_factory=Limits)

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names that a request may call the server by; None for any.

        A server for this machine alone must not answer to another name: by DNS rebinding, a web page
        elsewhere could otherwise make a browser on this machine send it requests.
        """
        return LOOPBACK if self.host in LOOPBACK else None
