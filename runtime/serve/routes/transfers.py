"""Sends and receives states. Each is large, so only a few are under way at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import anyio
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from plugins.errors import UserError
from runtime.resume.state import State
from runtime.serve.disk.transfer import load_received
from runtime.serve.edge.access import too_large
from runtime.serve.edge.errors import ApiError, busy
from runtime.serve.routes.serving import Server
from vmla.config import FRAMES_PER_SECOND

SPARE = 4 << 20
"""Bytes that a state may have beyond the plan's figure for a stream: its header and rounding."""


@contextmanager
def transfer_slot(server: Server) -> Iterator[None]:
    """A context that counts one state as under way.

    Raises:
        ApiError: if the limit is reached.
    """
    most = server.settings.limits.transfers
    if len(server.transfers) >= most:
        raise busy(f"{most} states are under way; try again")
    here = object()
    server.transfers.add(here)
    try:
        yield
    finally:
        server.transfers.remove(here)


class StateResponse(Response):
    """A state in memory, which counts as under way until the client has it."""

    media_type = "application/vnd.videomla.state"

    def __init__(self, content: bytes, under_way: ExitStack, *, name: str, number: int) -> None:
        """Send the state of the stream `name`, whose next chunk is `number`; close `under_way` at the end."""
        headers = {
            "X-Sequence-Number": str(number),
            "Content-Disposition": f'attachment; filename="{name}.state"',
        }
        super().__init__(content, headers=headers)
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the state; it stops counting as under way afterwards."""
        with self._under_way:
            await super().__call__(scope, receive, send)


def packed(state: State) -> bytes:
    """`state` as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        state.save(path)
        return path.read_bytes()


async def received(request: Request, server: Server) -> State:
    """The state in the body of `request`; nothing in it is run, and all of it is checked.

    Raises:
        ApiError: if it is too large, comes too slowly, or is not a state of the served model.
    """
    most = server.streams.worker.session.plan.video_bytes + SPARE
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large(most)
    count = 0
    # A file without a name: nothing of it is left, whatever becomes of this process.
    with tempfile.TemporaryFile(dir=server.streams.store.path) as file:
        async for piece in request.stream():
            count += len(piece)
            if count > most:
                raise too_large(most)
            file.write(piece)
        file.seek(0)
        return await anyio.to_thread.run_sync(_checked, file, server)


def _checked(file: BinaryIO, server: Server) -> State:
    worker, limits = server.streams.worker, server.settings.limits
    assert worker.template is not None
    described = worker.session.describe(worker.job, frames=None)
    longest = round(limits.stream_seconds * FRAMES_PER_SECOND)
    try:
        return load_received(
            file, template=worker.template, described=described, characters=limits.prompt_characters,
            frames=longest,
        )  # fmt: skip
    except UserError as error:
        raise ApiError(422, "invalid_state", str(error)) from error
