"""`WS /v1/realtime/video`: a stream while it is made, in the protocol of vLLM-Omni's clients.

Control messages are JSON; each `video.chunk_metadata` is followed by one binary message with the chunk's
fragments of MP4. The first binary message of a connection has the file's head before them.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from runtime.serve.edge.access import PROTOCOL
from runtime.serve.edge.errors import ApiError, api_error, busy, invalid, not_found, sentence_of
from runtime.serve.routes.connection import Connection
from runtime.serve.routes.messages import SessionStart
from runtime.serve.routes.serving import Server, ThisServer
from runtime.serve.streams.stream import Stream

router = APIRouter()
UNSAVED = 256
"""Chunks that a viewer may have seen but a crash has lost; they are made again before new ones."""


@router.websocket("/v1/realtime/video")
async def realtime_video(socket: WebSocket, server: ThisServer) -> None:
    """Serve one viewer over its WebSocket, from its first message to the end of the stream."""
    spoken = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in spoken else None)
    connection = Connection(socket, server)
    try:
        if server.streams.viewers >= server.settings.limits.viewers:
            raise busy("too many viewers are connected")
        start = await _first(connection, server)
        peers, name = server.peers, start.session_id
        if peers is not None and name is not None and peers.is_remote(name, socket):
            await peers.watch(socket, start.model_dump_json(exclude_none=True))
            return
        began = time.perf_counter()
        stream = await _open(server, start)
        await connection.serve(stream, start, began=began)
    except ApiError as error:
        await connection.refuse(error)
    except (TimeoutError, WebSocketDisconnect):
        pass  # the viewer has gone, or reads nothing: the stream waits for the next one
    except FileNotFoundError:
        await connection.refuse(not_found("session"))  # the stream was deleted while it was watched
    except Exception as error:  # noqa: BLE001 - as with requests: the viewer is told, the log has all of it
        await connection.refuse(api_error(error, "/v1/realtime/video"))
    finally:
        await connection.close()


async def _first(connection: Connection, server: Server) -> SessionStart:
    """The viewer's first message, which must arrive in time.

    Raises:
        ApiError: if it does not come, or asks for something impossible.
    """
    try:
        message = await asyncio.wait_for(connection.receive(), server.settings.limits.start_seconds)
    except TimeoutError as error:
        raise ApiError(408, "start_timeout", "no session.start came") from error
    try:
        return SessionStart.model_validate(message)
    except ValidationError as error:
        raise invalid(sentence_of(error.errors())) from error


async def _open(server: Server, start: SessionStart) -> Stream:
    """The stream that the client asks for, new or existing, in memory unless it is over."""
    streams = server.streams
    server.check_model(start.model)
    if start.session_id is None:
        if start.prompt is None:
            raise invalid("prompt: a new session needs one; describe what the video shows")
        frames = server.frames_of(start.seconds, start.num_frames)
        return await streams.begin("session", prompt=start.prompt, seed=start.seed or 0, frames=frames)
    stream = streams.get(start.session_id, "session")
    number = start.sequence_number
    if number is not None and number < stream.info.first:
        raise ApiError(410, "gone", f"this server has the session from chunk {stream.info.first} on")
    if number is not None and number > stream.next + (0 if stream.over else UNSAVED):
        raise not_found("chunk")
    await streams.activate(stream)
    return stream
