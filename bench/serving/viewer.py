"""A viewer that notes when each chunk came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from websockets.asyncio.client import connect

from bench.harness.paired_timing import percentile
from plugins.errors import UserError


async def watch(port: int, *, most: int | None = None, **start: Any) -> tuple[float, list[float]]:
    """Watch a stream to its end, or for `most` chunks.

    Args:
        port: of the server on this machine.
        most: chunks, after which the viewer hangs up.
        start: fields of `session.start`.

    Returns:
        When `session.start` was sent and when each chunk had come, in seconds of `perf_counter`.

    Raises:
        UserError: if the server refuses.
    """
    came: list[float] = []
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime/video", max_size=None, compression=None) as socket:
        began = perf_counter()
        await socket.send(json.dumps({"type": "session.start", "format": "m4s", **start}))
        while most is None or len(came) < most:
            message = json.loads(await socket.recv())
            if message["type"] == "error":
                raise UserError(f"the server refused a viewer: {message['message']}")
            if message["type"] == "session.done":
                break
            if message["type"] == "video.chunk_metadata":
                await socket.recv()
                came.append(perf_counter())
    return began, came


async def watch_all(port: int, starts: Sequence[dict[str, Any]]) -> list[tuple[float, list[float]]]:
    """Run several viewers at once; see `watch`."""
    return await asyncio.gather(*(watch(port, **start) for start in starts))


async def connect_and_leave(port: int, number: int) -> None:
    """Connect and hang up, in one of four ways; every tenth begins an endless stream before."""
    if number % 4 == 3:
        await _half_a_request(port)
        return
    socket = await connect(f"ws://127.0.0.1:{port}/v1/realtime/video", max_size=None, compression=None)
    if number % 10 == 0:
        await socket.send(json.dumps({"type": "session.start", "prompt": "a red star", "seed": number}))
        await socket.recv()
    if number % 4 == 1:
        socket.transport.write(b"\xff" * 16)  # bytes that are not a frame
    if number % 4 == 2:
        socket.transport.abort()  # hangs up without closing
    await socket.close()


async def _half_a_request(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/sessions HTTP/1.1\r\nHost: 127")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def late_share(came: Sequence[float], chunk_seconds: float) -> float:
    """The share of chunks that came after all earlier ones had been played.

    Playback begins with the first chunk; a player that has run dry continues when the next one has come.
    """
    due, late = came[0] + chunk_seconds, 0
    for at in came[1:]:
        late += at > due
        due = max(due, at) + chunk_seconds
    return late / max(1, len(came) - 1)


def percentiles(values: list[float]) -> dict[str, float]:
    """The median and the tail."""
    return {f"p{share}": round(percentile(values, share), 5) for share in (50, 95, 99)}
