"""One WebSocket of the live protocol: chunks go out and messages come in until either side is done."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import suppress
from typing import Any

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from plugins.errors import UserError
from runtime.outputs.mp4_fragment import boxes
from runtime.serve.disk.index import StoredChunk
from runtime.serve.edge.errors import ApiError, invalid, sentence_of
from runtime.serve.edge.logs import log
from runtime.serve.routes.messages import LiveInteraction, SessionInteraction, SessionPlayback, SessionStart
from runtime.serve.routes.serving import Server
from runtime.serve.streams.stream import Stream
from runtime.serve.streams.viewer import Viewer
from vmla.config import FRAMES_PER_SECOND

HANDING_OVER = 1012
"""The code with which WebSockets are closed when this server ends: clients then join another one."""


class Connection:
    """Sends one message at a time, a chunk's metadata and its bytes as one; every wait has a limit."""

    def __init__(self, socket: WebSocket, server: Server) -> None:
        self._socket, self._server = socket, server
        self._sending = asyncio.Lock()
        self._sent, self._faults = 0, 0
        self._heard = time.monotonic()
        self._stopped = False

    # Messages.

    async def receive(self) -> Any:
        """The next message.

        Raises:
            ApiError: if it is no JSON object.
            WebSocketDisconnect: if the viewer is gone.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")  # `runtime.serve.listen` bounds the length of messages
        if text is None:
            raise invalid("messages to this server are JSON text")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise invalid("this message is not JSON") from error
        if not isinstance(value, dict):
            raise invalid("this message is not a JSON object")
        return value

    async def send(self, message: dict[str, Any], payload: bytes | None = None) -> None:
        """Send a message and the payload that belongs to it, with no other message between them.

        Raises:
            asyncio.TimeoutError: if the viewer reads nothing.
        """
        pair = asyncio.ensure_future(self._send(message, payload))
        try:
            await asyncio.shield(pair)
        except asyncio.CancelledError:  # the answer to a stop must not come amid a chunk
            await asyncio.wait([pair])
            with suppress(asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
                pair.result()
            raise

    async def _send(self, message: dict[str, Any], payload: bytes | None) -> None:
        async with self._sending, asyncio.timeout(self._server.settings.limits.stall_seconds):
            await self._socket.send_text(json.dumps(message))
            if payload is not None:
                await self._socket.send_bytes(payload)

    async def refuse(self, error: ApiError, **also: Any) -> None:
        """Send an error to a viewer, who may have left."""
        self._server.metrics.refused.labels(error.code).inc()
        retry = {} if not error.headers else {"retry_after": error.headers.get("Retry-After")}
        with suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            await self.send({"type": "error", "code": error.code, "message": error.message, **retry, **also})

    async def close(self) -> None:
        """Close the WebSocket unless it is closed already."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            with suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.close()

    # A session.

    async def serve(self, stream: Stream, start: SessionStart, *, began: float) -> None:
        """Send `stream` until it is over or the viewer is gone."""
        viewer = stream.attach(
            0 if start.session_id is None else start.sequence_number,
            buffer_seconds=start.streaming_buffer_seconds,
        )
        log("viewer came", stream=stream.id, sequence_number=viewer.next)
        try:
            await self.send(self._start(stream, viewer))
            tasks = [asyncio.ensure_future(work) for work in (
                self._send_chunks(stream, viewer, began), self._listen(stream, viewer)
            )]  # fmt: skip
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        finally:
            stream.detach(viewer)
            log("viewer left", stream=stream.id, sequence_number=viewer.next)
        if self._server.streams.handing_over and not stream.over and not self._stopped:
            await self._socket.close(HANDING_OVER)
        else:
            await self._done(stream, viewer)

    def _start(self, stream: Stream, viewer: Viewer) -> dict[str, Any]:
        described = self._server.describe(stream)
        names = ("model", "prompt", "seed", "width", "height", "fps", "seconds")
        config = {name: described[name] for name in names} | {"num_frames": stream.info.frames}
        return {
            "type": "video.start",
            "request_id": stream.id,
            "session_id": stream.id,
            "format": "m4s",
            "sequence_number": viewer.next,
            "config": config,
            "warnings": described["warnings"],
        }

    async def _done(self, stream: Stream, viewer: Viewer) -> None:
        if stream.info.status == "failed":
            await self.refuse(ApiError(500, "generation_failed", stream.info.error or "it failed"))
            return
        await self.send({
            "type": "session.done", "request_id": stream.id, "chunks": self._sent,
            "stopped": self._stopped or stream.info.status != "completed", "sequence_number": viewer.next,
            "status": stream.info.status,
        })  # fmt: skip

    # Outgoing messages.

    async def _send_chunks(self, stream: Stream, viewer: Viewer, began: float) -> None:
        """Send chunk after chunk: existing ones from the file, then each as it is made."""
        while await self._wait_for_chunk(stream, viewer):
            chunk = stream.index[viewer.next]
            payload, head = await asyncio.to_thread(_read, stream, chunk, with_head=not self._sent)
            await self.send(self._metadata(stream, chunk, len(payload), head), payload)
            self._server.metrics.sent.inc(len(payload))
            if not self._sent:
                self._server.metrics.first_frame.observe(time.perf_counter() - began)
            self._sent += 1
            viewer.next += 1
            self._heard = time.monotonic()

    async def _wait_for_chunk(self, stream: Stream, viewer: Viewer) -> bool:
        """Wait until there is another chunk for the viewer; False if there will be none.

        Raises:
            ApiError: if nothing comes and the viewer says nothing for too long.
        """
        while viewer.next >= stream.next:
            if stream.over or (not stream.resident and not stream.leaving and not stream.lock.locked()):
                return viewer.next < stream.next
            viewer.news.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(viewer.news.wait(), 1.0)
            if time.monotonic() - self._heard > self._server.settings.limits.stall_seconds:
                raise ApiError(408, "stalled", "no chunk was made and no message came for too long")
        return True

    def _metadata(self, stream: Stream, chunk: StoredChunk, length: int, head: int) -> dict[str, Any]:
        started, superseded = stream.events_at(chunk.number)
        return {
            "type": "video.chunk_metadata",
            "request_id": stream.id,
            "kind": "media",
            "transport_chunk_index": self._sent,
            "generation_chunk_index": chunk.number,
            "num_frames": chunk.frames,
            "byte_length": length,
            "started_event_ids": started,
            "active_event_ids": started,
            "completed_event_ids": started,
            "superseded_event_ids": superseded,
            "sequence_number": chunk.number,
            "head_length": head,
            "prompt": stream.prompt_at(chunk.number),
            "fps": FRAMES_PER_SECOND,
        }

    # Incoming messages.

    async def _listen(self, stream: Stream, viewer: Viewer) -> None:
        """Act on the viewer's messages until one stops the stream.

        Raises:
            WebSocketDisconnect: if it is gone.
            ApiError: if too many of its messages are invalid.
        """
        while not self._stopped:
            try:
                message = await self.receive()
                self._heard = time.monotonic()
                await self._obey(message, stream, viewer)
            except ValidationError as error:
                await self._fault(invalid(sentence_of(error.errors())))
            except ApiError as error:
                await self._fault(error)

    async def _fault(self, error: ApiError) -> None:
        self._faults += 1
        if self._faults > self._server.settings.limits.faults:
            raise ApiError(400, "too_many_faults", "too many messages of this connection were invalid")
        await self.refuse(error)

    async def _obey(self, message: dict[str, Any], stream: Stream, viewer: Viewer) -> None:
        kind = message.get("type")
        if kind == "session.ping":
            await self.send({"type": "session.pong"})
        elif kind == "session.playback":
            viewer.played(SessionPlayback.model_validate(message).position_seconds)
        elif kind == "session.interaction":
            await self._interact(SessionInteraction.model_validate(message).interaction, stream)
        elif kind == "session.stop":
            self._stopped = True
            stream.leave("stopped")
        else:
            raise invalid("type: no such message; see docs/serve.md")

    async def _interact(self, asked: LiveInteraction, stream: Stream) -> None:
        """Queue a change of prompt; the metadata of the chunk that first shows it has its id."""
        event, names = asked.event, {"request_id": stream.id, "event_id": asked.event_id}
        if event.prompt is None or event.multi_modal_data is not None:
            error = ApiError(422, "interaction_failed", "this model takes only prompts; send event.prompt")
            await self.refuse(error, **names)
            return
        try:
            stream.change(event.prompt, asked.policy, asked.event_id)
        except UserError as error:
            await self.refuse(ApiError(409, "interaction_failed", str(error)), **names)
            return
        also = {"policy": asked.policy, "transition_chunks": 1}
        warnings = self._server.streams.worker.warnings(event.prompt)
        await self.send({"type": "session.interaction.queued", **names, **also, "warnings": warnings})


def _read(stream: Stream, chunk: StoredChunk, *, with_head: bool) -> tuple[bytes, int]:
    """The bytes of `chunk`, and how many of them are the file's head, which the first chunk always has."""
    file = os.open(stream.folder.video, os.O_RDONLY)
    try:
        payload = os.pread(file, chunk.end - chunk.start, chunk.start)
        begins = chunk.number == stream.info.first
        if not (begins or with_head):
            return payload, 0
        head = _head(os.pread(file, min(stream.index[stream.info.first].end, HEAD_BYTES), 0))
        return (payload if begins else head + payload), len(head)
    finally:
        os.close(file)


HEAD_BYTES = 1 << 16
"""Upper bound of the bytes in the head of a file."""


def _head(data: bytes) -> bytes:
    """The bytes before the first fragment."""
    end = 0
    for box in boxes(data):
        if box.kind == b"moof":
            break
        end = box.end
    return data[:end]
