"""New streams from the states of others: forks, and sessions taken over from another server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.prompts.sources import Policy, PromptChange
from runtime.resume.sidecar import list_changes
from runtime.resume.state import State, save_state
from runtime.serve.disk.folder import StreamFolder, StreamInfo
from runtime.serve.edge.errors import ApiError, invalid
from runtime.serve.edge.logs import log
from runtime.serve.streams.stream import Stream
from runtime.serve.streams.table import Streams


async def fork(
    streams: Streams, stream: Stream, *, prompt: str | None, policy: Policy, seed: int | None
) -> Stream:
    """A new stream with the past of `stream`, and from the next chunk on another prompt or seed.

    Raises:
        ApiError: if there is no room, or no state to continue.
    """
    await streams.make_room("session")
    state = await streams.snapshot(stream)
    number, seed = state.snapshot.number, stream.info.seed if seed is None else seed
    prompts = list(state.video["prompts"])
    if prompt is not None:
        change = PromptChange(chunk=number, prompts=(prompt,), policy=policy)
        prompts = [one for one in prompts if one["chunk"] < number] + list_changes([change])
    info = replace(
        stream.info, id=streams.store.new_name("session"), kind="session", prompt=prompts[0]["prompt"],
        seed=seed, created=time.time(), parent=stream.id, status="paused",
    )  # fmt: skip
    video = {**state.video, "seed": seed, "prompts": prompts}
    other = await streams.new(info, lambda folder: _copy(stream, state, folder, info, video))
    log("forked", stream=other.id, parent=stream.id, chunk=number)
    await streams.activate_new(other)
    return other


def _copy(
    stream: Stream, state: State, folder: StreamFolder, info: StreamInfo, video: Mapping[str, Any]
) -> None:
    past = [change for change in stream.changes if change.chunk < state.snapshot.number]
    end = state.mark["bytes"] if stream.folder.video.exists() else 0
    stream.folder.fork(folder, info, end=end, changes=past)
    save_state(folder.state, state, video)


async def adopt(streams: Streams, name: str, state: State) -> Stream:
    """Take over a stream from another server; it stays at rest until somebody watches it.

    Raises:
        ApiError: if there is one of that name, or no room.
    """
    await streams.make_room("session")
    if not name.startswith("session_"):
        raise invalid("this is not the name of a session")
    try:
        streams.store.folder(name)
    except ValueError as error:
        raise invalid(str(error)) from error
    if streams.has(name):
        raise ApiError(409, "exists", "there is a session of that name here already")
    before = [one for one in state.video["prompts"] if one["chunk"] <= state.snapshot.number]
    info = StreamInfo(
        id=name, kind="session", prompt=before[-1]["prompt"], seed=state.video["seed"],
        frames=state.video["frames"], created=time.time(), lease=streams.settings.lease_seconds,
        first=state.snapshot.number, status="paused",
    )  # fmt: skip
    stream = await streams.new(info, lambda folder: _write(folder, info, state))
    log("taken over", stream=name, chunk=info.first)
    return stream


def _write(folder: StreamFolder, info: StreamInfo, state: State) -> None:
    folder.write(info)
    save_state(folder.state, state, state.video)
