"""`/v1/sessions`: begin, watch, steer, fork, move and end streams."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import Response

from plugins.errors import UserError
from runtime.serve.disk.transfer import without_paths
from runtime.serve.edge.errors import ApiError, invalid
from runtime.serve.routes.content import file_of
from runtime.serve.routes.messages import Fork, Interaction, NewSession
from runtime.serve.routes.serving import ThisServer
from runtime.serve.routes.transfers import StateResponse, packed, received, transfer_slot
from runtime.serve.streams import from_state

router = APIRouter(prefix="/v1/sessions")


@router.post("", status_code=201)
async def begin(body: NewSession, server: ThisServer) -> dict[str, Any]:
    """Begin a session; its first chunks are made at once, the others while somebody watches."""
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
    """The current status of a session."""
    return server.describe(server.streams.get(name, "session"))


@router.delete("/{name}")
async def end(name: str, server: ThisServer) -> dict[str, Any]:
    """End a session and delete its file."""
    await server.streams.remove(server.streams.get(name, "session"))
    return {"id": name, "object": "session.deleted", "deleted": True}


@router.head("/{name}/content", include_in_schema=False)
@router.get("/{name}/content")
async def content(name: str, server: ThisServer) -> Response:
    """The file of the video so far; ranges are supported."""
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
    """Move the session out of memory; the next viewer or request brings it back."""
    stream = server.streams.get(name, "session")
    await server.streams.pause(stream)
    return server.describe(stream)


@router.post("/{name}/fork", status_code=201)
async def fork(name: str, body: Fork, server: ThisServer) -> dict[str, Any]:
    """A new session with the same past, and another prompt or seed from here on."""
    stream = server.streams.get(name, "session")
    if stream.info.status == "completed":
        raise ApiError(409, "over", "this session is complete; there is nothing to continue")
    other = await from_state.fork(
        server.streams, stream, prompt=body.prompt, policy=body.policy, seed=body.seed
    )
    return server.describe(other)


@router.get("/{name}/state")
async def state(name: str, server: ThisServer) -> Response:
    """The session's state, from which another server can continue it; the session itself continues."""
    stream = server.streams.get(name, "session")
    with ExitStack() as stack:
        stack.enter_context(transfer_slot(server))
        found = without_paths(await server.streams.snapshot(stream), model=server.settings.name)
        data = await anyio.to_thread.run_sync(packed, found)
        return StateResponse(data, stack.pop_all(), name=name, number=found.snapshot.number)


@router.put("/{name}/state", status_code=201)
async def take_over(name: str, request: Request, server: ThisServer) -> dict[str, Any]:
    """Continue a session of another server here, from its state in the body."""
    with transfer_slot(server):
        stream = await from_state.adopt(server.streams, name, await received(request, server))
    return server.describe(stream)
