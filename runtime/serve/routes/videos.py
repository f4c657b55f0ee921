"""`/v1/videos`: jobs, in the shape of the public video API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from runtime.serve.edge.errors import ApiError, invalid, sentence_of
from runtime.serve.routes.content import file_of
from runtime.serve.routes.messages import NewVideo
from runtime.serve.routes.serving import Server, ThisServer
from runtime.serve.streams.stream import Stream
from vmla.config import FRAMES_PER_SECOND

router = APIRouter(prefix="/v1/videos")
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
STATUS = {"ready": "in_progress", "stopped": "failed"}
"""The public API's names of our statuses, where they differ."""
USUAL_SECONDS = 4.0
"""The length of a video where the request gives none: the public API's default."""


@router.post("")
async def create(request: Request, server: ThisServer) -> dict[str, Any]:
    """Put a video into the queue; the body is a form or JSON."""
    asked = await _body(request)
    server.check_model(asked.model)
    worker = server.streams.worker
    if asked.size is not None and asked.size != f"{worker.width}x{worker.height}":
        raise invalid(f"size: this model makes {worker.width}x{worker.height}")
    if asked.fps not in (None, FRAMES_PER_SECOND):
        raise invalid(f"fps: this model makes {FRAMES_PER_SECOND}")
    if asked.num_inference_steps not in (None, worker.job.sampler.steps):
        raise invalid(f"num_inference_steps: this server makes {worker.job.sampler.steps}")
    seconds = USUAL_SECONDS if asked.seconds is None else asked.seconds
    frames = server.frames_of(seconds, asked.num_frames)
    stream = await server.streams.begin("video", prompt=asked.prompt, seed=asked.seed, frames=frames)
    return describe(server, stream)


async def _body(request: Request) -> NewVideo:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind in FORMS:
            async with request.form(max_files=0, max_fields=40) as form:
                fields = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
            return NewVideo.model_validate(fields)
        return NewVideo.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(sentence_of(error.errors())) from error


@router.get("")
async def every(server: ThisServer, limit: int = 20, after: str | None = None) -> dict[str, Any]:
    """Jobs, the newest first: `limit` of them, those `after` one if it is named."""
    if not 1 <= limit <= 100:
        raise invalid("limit: from 1 to 100")
    there = [stream for stream in server.streams if stream.info.kind == "video"]
    there.sort(key=lambda stream: stream.info.created, reverse=True)
    names = [stream.id for stream in there]
    begin = names.index(after) + 1 if after in names else 0
    page = there[begin : begin + limit]
    more = begin + limit < len(there)
    return {"object": "list", "data": [describe(server, stream) for stream in page], "has_more": more}


@router.get("/{name}")
async def one(name: str, server: ThisServer) -> dict[str, Any]:
    """The current status of a job."""
    return describe(server, server.streams.get(name, "video"))


@router.head("/{name}/content", include_in_schema=False)
@router.get("/{name}/content")
async def content(name: str, server: ThisServer) -> Response:
    """The file of a finished job; ranges are supported."""
    stream = server.streams.get(name, "video")
    if stream.info.status != "completed":
        raise ApiError(409, "not_complete", "this video is not complete; ask for its status", retry_after=2)
    return file_of(stream)


@router.delete("/{name}")
async def delete(name: str, server: ThisServer) -> dict[str, Any]:
    """End a job and delete its file."""
    await server.streams.remove(server.streams.get(name, "video"))
    return {"id": name, "object": "video.deleted", "deleted": True}


def describe(server: Server, stream: Stream) -> dict[str, Any]:
    """The JSON object of a job, in the shape of the public video API."""
    info, worker = stream.info, server.streams.worker
    assert info.frames is not None
    error = info.error or ("it was ended" if info.status == "stopped" else None)
    return {
        "id": info.id,
        "object": "video",
        "model": server.settings.name,
        "status": STATUS.get(info.status, info.status),
        "progress": min(100, 100 * stream.index.frames // info.frames),
        "created_at": int(info.created),
        "prompt": info.prompt,
        "seed": info.seed,
        "seconds": f"{info.frames / FRAMES_PER_SECOND:g}",
        "size": f"{worker.width}x{worker.height}",
        "error": None if error is None else {"code": "failed", "message": error},
    }
