"""Measurements of a server: many viewers, visitors, and streams that move, fork and return."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import psutil

from bench.serving.server import PATIENCE, Running
from bench.serving.viewer import connect_and_leave, late_share, percentiles, watch, watch_all
from plugins.errors import UserError
from runtime.prompts.sources import FixedPrompts
from runtime.session.generate import make_videos
from runtime.session.replay import Order
from runtime.telemetry.events import NoTelemetry

PROMPT = "a red star bouncing on a navy background"


def without_server(order: Order, count: int, folder: Path) -> float:
    """Frames per second, in all, of `count` videos that one session makes at once into files."""
    jobs = [replace(order.job, prompts=FixedPrompts(PROMPT), seed=seed) for seed in range(count)]
    orders = {folder / f"{job.seed}.mp4": replace(order, job=job) for job in jobs}
    endings = make_videos(orders, telemetry=lambda _: NoTelemetry(), stop=threading.Event())
    if failed := [ending.failure for ending in endings if ending.failure is not None]:
        raise UserError(failed[0])
    return count * order.frames / max(ending.outcome.seconds for ending in endings)


def with_viewers(server: Running, count: int, frames: int) -> dict[str, Any]:
    """Figures of `count` new streams of `frames` frames, each with a viewer who takes chunks once made."""
    starts = [{"prompt": PROMPT, "seed": seed, "num_frames": frames} for seed in range(count)]
    seen = asyncio.run(watch_all(server.port, starts))
    whole = max(came[-1] for _, came in seen) - min(began for began, _ in seen)
    gaps = [after - before for _, came in seen for before, after in zip(came, came[1:], strict=False)]
    late = [late_share(came, server.chunk_seconds) for _, came in seen]
    firsts = [came[0] - began for began, came in seen]
    return {
        "frames_per_second": round(count * frames / whole, 1),
        "first_frame_seconds": percentiles(firsts),
        "gap_seconds": percentiles(gaps),
        "late_share": round(sum(late) / len(late), 4),
    }


def connects(server: Running, count: int) -> dict[str, Any]:
    """Figures of `count` viewers who come and go one by one, and of what the process then holds more."""

    async def crowd(count: int) -> None:
        for number in range(count):
            await connect_and_leave(server.port, number)

    asyncio.run(crowd(10))  # unmeasured: caches that the first visitors fill for good
    before = _held(server)
    began = perf_counter()
    asyncio.run(crowd(count))
    seconds = perf_counter() - began
    left = {name: now - before[name] for name, now in _held(server).items()}
    return {"count": count, "per_second": round(count / seconds, 1), "left": left}


def _held(server: Running) -> dict[str, int]:
    """Files, threads and bytes of the process when nobody is connected."""
    end = perf_counter() + PATIENCE
    while "videomla_resident_streams 0.0" not in server.http.get("/metrics").text:
        if perf_counter() > end:
            raise UserError("streams without viewers stay in memory")
        sleep(0.05)
    for stream in server.http.get("/v1/sessions").json()["data"]:
        server.http.delete(f"/v1/sessions/{stream['id']}").raise_for_status()
    gc.collect()
    process = psutil.Process()
    return {
        "files": process.num_fds(), "threads": threading.active_count(), "bytes": process.memory_info().rss
    }  # fmt: skip


def hand_over(server: Running, other: Running, name: str) -> tuple[float, float]:
    """Seconds until a stream's state is at another server, and until its next chunk has come from there."""
    began = perf_counter()
    state = server.http.get(f"/v1/sessions/{name}/state").raise_for_status()
    at = f"/v1/sessions/{name}/state"
    other.http.put(at, content=state.content).raise_for_status()
    moved = perf_counter() - began
    number = int(state.headers["X-Sequence-Number"])
    asyncio.run(watch(other.port, most=1, session_id=name, sequence_number=number))
    whole = perf_counter() - began
    other.http.delete(f"/v1/sessions/{name}").raise_for_status()
    return moved, whole


def fork(server: Running, name: str) -> float:
    """Seconds to fork a stream."""
    began = perf_counter()
    made = server.http.post(f"/v1/sessions/{name}/fork", json={"seed": 1}).raise_for_status()
    seconds = perf_counter() - began
    server.http.delete(f"/v1/sessions/{made.json()['id']}").raise_for_status()
    return seconds


def cold_return(server: Running, name: str) -> float:
    """Seconds from `session.start` to the next chunk of a stream that was out of memory."""
    there = server.http.post(f"/v1/sessions/{name}/pause").raise_for_status().json()["sequence_number"]
    start = {"session_id": name, "sequence_number": there}
    began, came = asyncio.run(watch(server.port, most=1, **start))
    return came[0] - began


def begin(server: Running) -> str:
    """Begin an endless stream, wait for its first three chunks, and return its name."""
    made = server.http.post("/v1/sessions", json={"prompt": PROMPT, "lease_seconds": 600}).raise_for_status()
    name = str(made.json()["id"])
    asyncio.run(watch(server.port, most=3, session_id=name, sequence_number=0))
    return name


def repeated(measure: Callable[[], float], times: int) -> dict[str, float]:
    """Median and worst of several times, in milliseconds."""
    found = [1000 * measure() for _ in range(times)]
    return {"median_ms": round(median(found), 2), "worst_ms": round(max(found), 2)}
