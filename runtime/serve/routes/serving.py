"""Shared by all routes: the server's parts, and the JSON form of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from runtime.serve.edge.errors import ApiError, invalid
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.shared.peers import Peers
from runtime.serve.streams.stream import Stream
from runtime.serve.streams.table import Streams
from vmla.config import FRAMES_PER_SECOND


@dataclass(frozen=True, kw_only=True)
class Server:
    """The parts of a running server."""

    streams: Streams
    settings: ServeSettings
    metrics: Metrics
    transfers: set[object] = field(default_factory=set)
    """States that are being sent or received."""
    peers: Peers | None = None
    """The servers that share the store; None if there are none."""

    def check_model(self, model: str | None) -> None:
        """Refuse to make videos with a model that is not served.

        Raises:
            ApiError: if it is another one.
        """
        if model not in (None, "", self.settings.name):
            raise ApiError(404, "model_not_found", f"this server only has the model {self.settings.name}")

    def frames_of(self, seconds: float | None, frames: int | None = None) -> int | None:
        """The number of frames of a video of `seconds`, or of `frames` if given; None for an endless one.

        Raises:
            ApiError: if it is too long.
        """
        longest = self.settings.limits.stream_seconds
        hours = f"{longest / 3600:g} hours"
        if frames is not None:
            if frames > (most := int(longest * FRAMES_PER_SECOND)):
                raise invalid(f"num_frames: at most {most} frames, which are {hours}")
            return frames
        if seconds is None:
            return None
        if seconds > longest:
            raise invalid(f"seconds: at most {longest:g} seconds, which are {hours}")
        return max(1, round(seconds * FRAMES_PER_SECOND))

    def describe(self, stream: Stream) -> dict[str, Any]:
        """The JSON object of a session, as every route returns it."""
        worker, info, index = self.streams.worker, stream.info, stream.index
        plan = worker.session.plan
        frames = None if info.frames is None else info.frames / FRAMES_PER_SECOND
        return {
            "id": info.id,
            "object": "session",
            "model": self.settings.name,
            "status": info.status,
            "error": None if info.error is None else {"code": "failed", "message": info.error},
            "created_at": int(info.created),
            "prompt": stream.prompt_at(stream.next),
            "seed": info.seed,
            "seconds": frames,
            "parent": info.parent,
            "first_sequence_number": info.first,
            "sequence_number": stream.next,
            "seconds_made": round(stream.next * worker.chunk_seconds, 3),
            "resident": stream.resident,
            "viewers": len(stream.viewers),
            "lease_seconds": info.lease,
            "lease_expires_at": stream.expires,
            "width": worker.width,
            "height": worker.height,
            "fps": FRAMES_PER_SECOND,
            "making_fps": round(stream.speed, 1),
            "memory_bytes": plan.video_bytes if stream.resident else 0,
            "file_bytes": index.bytes,
            "warnings": worker.warnings(stream.prompt_at(stream.next)),
        }


def server_of(connection: HTTPConnection) -> Server:
    """The server that a request came to."""
    server: Server = connection.app.state.server
    return server


ThisServer = Annotated[Server, Depends(server_of)]
