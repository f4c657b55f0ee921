"""The server's model, health and metrics, and its page: `/v1/models`, `/health`, `/metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from runtime.serve.edge.errors import ApiError, not_found
from runtime.serve.routes.serving import ThisServer
from vmla.config import FRAMES_PER_SECOND
from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES

router = APIRouter()
PAGE = Path(__file__).parents[1] / "page"
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
EXAMPLES = (
    "a red star bouncing on a navy background",
    "a cyan ring orbiting on a black background",
    "a green cross spinning on a gray background",
    "a yellow square drifting on a maroon background",
)


@router.get("/v1/models")
async def models(server: ThisServer) -> dict[str, Any]:
    """The served model: the videos that it makes, and the words that it knows."""
    worker = server.streams.worker
    knows = {
        "shapes": list(SHAPES), "colours": list(COLOURS), "motions": list(MOTIONS),
        "backgrounds": list(BACKGROUNDS), "sizes": list(SIZES), "examples": list(EXAMPLES),
    }  # fmt: skip
    about = {
        "id": server.settings.name,
        "object": "model",
        "owned_by": "videomla",
        "width": worker.width,
        "height": worker.height,
        "fps": FRAMES_PER_SECOND,
        "chunk_frames": worker.chunk_frames,
        "steps": worker.job.sampler.steps,
        "layout": worker.config.layout,
        "places": worker.places,
        "stream_bytes": worker.session.plan.video_bytes,
        "longest_seconds": server.settings.limits.stream_seconds,
        "knows": None if worker.world is None else knows,
    }
    return {"object": "list", "data": [about]}


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Report that the process answers."""
    return {"status": "live"}


@router.get("/health/ready")
@router.get("/health")
async def ready(server: ThisServer) -> dict[str, str]:
    """Report whether chunks can be made."""
    if not (server.streams.ready and server.streams.worker.alive):
        raise ApiError(503, "not_ready", "no chunks are made; the log says why", retry_after=5)
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(server: ThisServer) -> Response:
    """The server's metrics in Prometheus' text format."""
    server.streams.measure()
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The HTML page that plays a stream."""
    return FileResponse(PAGE / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.head("/page/{name}", include_in_schema=False)
@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A script or style sheet of the page."""
    if name not in FILES:
        raise not_found("file")
    return FileResponse(PAGE / name, media_type=FILES[name], headers={"Cache-Control": "no-cache"})
