"""How the server is set up, and the limits within which it serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What nobody may exceed; seconds, bytes and counts."""

    prompt_characters: int = 2_000
    body_bytes: int = 1 << 16
    """Of a request, but for a state."""
    message_bytes: int = 1 << 16
    """Of a message on a WebSocket."""
    request_seconds: float = 30.0
    """Within which a request's head, and then its body, must have come."""
    requests_per_minute: int = 240
    """Of one address, of those that make or change something."""
    start_seconds: float = 10.0
    """Within which a WebSocket must say what it wants."""
    stall_seconds: float = 60.0
    """After which a viewer that takes nothing, or is given nothing and says nothing, is let go."""
    faults: int = 20
    """Messages that mean nothing, after which a WebSocket is closed."""
    viewers: int = 256
    """In all."""
    resident: int = 64
    """Streams in memory at once; fewer, if memory holds fewer."""
    waiting: int = 100
    """Jobs in the queue."""
    transfers: int = 4
    """States under way at once, in or out."""
    stored: int = 1_000
    """Streams and jobs on disk; another one takes the place of the session that was left first."""
    spared_seconds: float = 600.0
    """For which a session is kept after anybody watched it or asked for it, however many there are."""
    stream_seconds: float = 6 * 3600.0
    """The longest stream, and what an endless one ends at."""
    longest_lease: float = 3600.0
    """The longest lease that may be asked for."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How the server is set up."""

    store: Path
    """The folder of the streams; nobody else writes there."""
    name: str
    """Of the model, as clients write it."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    """Any of them opens the door; without one, it is open."""
    origins: tuple[str, ...] = ()
    """Web pages of other origins that may use the server, such as `https://example.org`."""
    lease_seconds: float = 30.0
    """How long a stream without viewers stays in memory, unless its owner asks for another time."""
    keep_seconds: float = 24 * 3600.0
    """How long a stream or job that nobody asks for stays on disk."""
    save_every: float = 5.0
    """Seconds between two states of a stream on disk."""
    shared: str | None = None
    """Where servers that share the store reach this one, such as `http://10.0.0.2:8000`; None: it is not."""
    relay_key: str | None = None
    """What they know each other by."""
    limits: Limits = field(default_factory=Limits)

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names that a request may call the server by; None for any.

        One that only this machine can reach must not be reached under another name: that is how a web
        page elsewhere would make a browser here its messenger.
        """
        return LOOPBACK if self.host in LOOPBACK else None
