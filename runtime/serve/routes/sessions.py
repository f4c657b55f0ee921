"""`/v1/sessions`: streams that one begins, looks at, steers, forks, moves and ends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from plugins.errors import UserError
from runtime.resume.state import State
from runtime.serve.disk.store import INCOMING
from runtime.serve.disk.transfer import load_received, without_places
from runtime.serve.edge.access import too_large
from runtime.serve.edge.errors import ApiError, invalid
from runtime.serve.routes.messages import Fork, Interaction, NewSession
from runtime.serve.routes.serving import Server, ThisServer
from runtime.serve.streams import descent
from runtime.serve.streams.stream import Stream
from vmla.config import FRAMES_PER_SECOND

router = APIRouter(prefix="/v1/sessions")
STATE = "application/vnd.videomla.state"
SPARE = 4 << 20
"""Bytes that a state may have beside what the plan says of a stream: its header, and what is rounded up."""


@router.post("", status_code=201)
async def begin(body: NewSession, server: ThisServer) -> dict[str, Any]:
    """A new session; its first chunks are made at once, the others while somebody watches."""
    server.check_model(body.model)
    longest, lease = server.settings.limits.longest_lease, body.lease_seconds
    if lease is not None and lease > longest:
        raise invalid(f"lease_seconds: at most {longest:g}")
    frames = server.frames_of(body.seconds)
    stream = await server.streams.begin(
        "session", prompt=body.prompt, seed=body.seed, frames=frames, lease=lease
    )
    return server.describe(stream)


@router.get("")
async def every(server: ThisServer) -> dict[str, Any]:
    """All sessions, the newest first."""
    there = [stream for stream in server.streams if stream.info.kind == "session"]
    there.sort(key=lambda stream: stream.info.created, reverse=True)
    return {"object": "list", "data": [server.describe(stream) for stream in there]}


@router.get("/{name}")
async def one(name: str, server: ThisServer) -> dict[str, Any]:
    """A session as it is now."""
    return server.describe(server.streams.get(name, "session"))


@router.delete("/{name}")
async def end(name: str, server: ThisServer) -> dict[str, Any]:
    """End a session and delete its file."""
    await server.streams.remove(server.streams.get(name, "session"))
    return {"id": name, "object": "session.deleted", "deleted": True}


@router.get("/{name}/content")
async def content(name: str, server: ThisServer) -> Response:
    """The video so far."""
    return file_of(server.streams.get(name, "session"))


@router.post("/{name}/interaction", status_code=202)
async def interact(name: str, body: Interaction, server: ThisServer) -> dict[str, Any]:
    """Ask for another prompt from the next chunk on."""
    stream = server.streams.get(name, "session")
    await server.streams.activate(stream)
    if not stream.resident:
        raise ApiError(409, "over", "this session is over")
    try:
        stream.change(body.prompt, body.policy, body.event_id)
    except UserError as error:
        raise invalid(str(error)) from error
    warnings = server.streams.worker.warnings(body.prompt)
    return {"id": name, "event_id": body.event_id, "policy": body.policy, "warnings": warnings}


@router.post("/{name}/pause")
async def pause(name: str, server: ThisServer) -> dict[str, Any]:
    """Take it out of memory now; whoever comes next brings it back."""
    stream = server.streams.get(name, "session")
    stream.leave("paused")
    await stream.gone()
    return server.describe(stream)


@router.post("/{name}/fork", status_code=201)
async def fork(name: str, body: Fork, server: ThisServer) -> dict[str, Any]:
    """A new session with the same past, and another prompt or seed from here on."""
    if body.prompt is not None and not body.prompt.strip():
        raise invalid("prompt: the prompt is empty; describe what the video shows")
    stream = server.streams.get(name, "session")
    if stream.info.status == "completed":
        raise ApiError(409, "over", "this session is complete; there is nothing to go on with")
    other = await descent.fork(server.streams, stream, prompt=body.prompt, policy=body.policy, seed=body.seed)
    return server.describe(other)


@router.get("/{name}/state")
async def state(name: str, server: ThisServer) -> Response:
    """All that is needed to go on with it elsewhere, as one file; the session itself goes on."""
    stream = server.streams.get(name, "session")
    found = without_places(await server.streams.snapshot(stream), model=server.settings.name)
    number = found.snapshot.number
    data = await anyio.to_thread.run_sync(_packed, found)
    headers = {
        "X-Sequence-Number": str(number),
        "Content-Disposition": f'attachment; filename="{name}.state"',
    }
    return Response(data, media_type=STATE, headers=headers)


@router.put("/{name}/state", status_code=201)
async def take_over(name: str, request: Request, server: ThisServer) -> dict[str, Any]:
    """Go on here with a session of another server, by its state."""
    most = server.streams.worker.session.plan.video_bytes + SPARE
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large(most)
    received = await _received(request, most, server)
    return server.describe(await descent.adopt(server.streams, name, received))


async def _received(request: Request, most: int, server: Server) -> State:
    """The state in the body of `request`; nothing in it is run, and all of it is checked."""
    handle, name = tempfile.mkstemp(prefix=INCOMING, dir=server.streams.store.path)
    try:
        count = 0
        with os.fdopen(handle, "wb") as file:
            async for piece in request.stream():
                count += len(piece)
                if count > most:
                    raise too_large(most)
                file.write(piece)
        return await anyio.to_thread.run_sync(_checked, Path(name), server)
    finally:
        Path(name).unlink(missing_ok=True)


def _checked(path: Path, server: Server) -> State:
    worker, limits = server.streams.worker, server.settings.limits
    assert worker.template is not None
    described = worker.session.describe(worker.job, frames=None)
    longest = round(limits.stream_seconds * FRAMES_PER_SECOND)
    try:
        return load_received(
            path, template=worker.template, described=described, characters=limits.prompt_characters,
            frames=longest,
        )  # fmt: skip
    except UserError as error:
        raise ApiError(422, "invalid_state", str(error)) from error


def _packed(state: State) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        state.save(path)
        return path.read_bytes()


def file_of(stream: Stream) -> Response:
    """The file of `stream` as far as it is written; ranges are answered. Players pass over a torn end.

    Raises:
        ApiError: if it has no frames yet.
    """
    if not stream.index.bytes:
        raise ApiError(409, "no_frames", "no frames are made yet", retry_after=1)
    return FileResponse(stream.folder.video, media_type="video/mp4", filename=f"{stream.id}.mp4")
