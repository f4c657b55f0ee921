"""The streams of a server that shares its store: any server may load a stream that is at rest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from plugins.errors import UserError
from runtime.serve.disk.fence import Claim, ClaimLostError, Fence
from runtime.serve.disk.folder import StreamFolder
from runtime.serve.disk.store import Store
from runtime.serve.edge.errors import ApiError
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing
from runtime.serve.streams.stream import Stream
from runtime.serve.streams.table import Streams
from runtime.serve.streams.worker import Worker

LOGGER = logging.getLogger("vmla.serve")
HELD = "held_elsewhere"
"""Error code for a stream that another server makes and does not release in time."""
HAND_OVER_SECONDS = 5.0
"""Seconds to wait for a server that is about to release a stream."""
CLAIM_SECONDS = 0.005
"""Seconds between two attempts to claim a stream that another server is about to release."""
SCAN_SECONDS = 2.0
"""Seconds between two searches for streams that other servers have begun, and for jobs that no server
makes."""
UNREADABLE = (OSError, UserError)
"""Errors of a stream whose files are damaged, or are being written or removed."""


class SharedStreams(Streams):
    """Streams that are claimed while in memory here, and otherwise read from disk each time."""

    def __init__(
        self, store: Store, worker: Worker, settings: ServeSettings, metrics: Metrics, tracing: Tracing,
        fence: Fence,
    ) -> None:  # fmt: skip
        super().__init__(store, worker, settings, metrics, tracing)
        self._fence = fence
        self._scanning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Streams.start`; also begins to search the store for other servers' streams."""
        await super().start()
        self._scanning = asyncio.create_task(self._scan())

    async def close(self) -> None:
        """See `Streams.close`; other servers may then claim the streams."""
        if self._scanning is not None:
            self._scanning.cancel()
        await super().close()

    async def drain(self) -> None:
        """Release all streams, so that other servers continue them, and begin no more."""
        self.ready, self.handing_over = False, True
        await self._rest()

    # Streams that other servers make.

    def holder(self, name: str) -> str | None:
        """The address of the other server that makes the stream of that name; None if no other does."""
        stream = self._streams.get(name)
        if stream is not None and (stream.resident or stream.lock.locked()):
            return None
        with suppress(ValueError):
            return self._fence.holder(self.store.folder(name))
        return None

    def refresh(self, name: str) -> None:
        """Read the stream called `name` from disk again: it may have changed, be new, or be gone."""
        with suppress(ValueError):
            self._refresh(self.store.folder(name))

    def refresh_all(self) -> None:
        """Do as `refresh` does, for all streams."""
        folders = {folder.path.name: folder for folder in self.store.folders()}
        for name in {*folders, *self._streams}:
            self.refresh(name)

    def _refresh(self, folder: StreamFolder) -> None:
        name = folder.path.name
        if name in self._new:
            return
        stream = self._streams.get(name)
        if stream is None:
            if folder.has_info:
                self._load(folder)
        elif stream.resident or stream.lock.locked():
            return
        elif folder.has_info:
            with suppress(*UNREADABLE):
                stream.refresh()
        else:
            del self._streams[name]

    def has(self, name: str) -> bool:
        """See `Streams.has`; a stream that another server has begun counts as well."""
        self.refresh(name)
        return super().has(name)

    # Streams that this server makes.

    async def activate(self, stream: Stream) -> None:
        """See `Streams.activate`.

        Raises:
            ApiError: also if another server makes it.
        """
        with _refused():
            await super().activate(stream)

    async def _bring(self, stream: Stream) -> None:
        """See `Streams._bring`; the stream is claimed and read from disk first."""
        coming = asyncio.ensure_future(self._make_ours(stream))
        try:
            await asyncio.shield(coming)
        except (
            BaseException
        ):  # a cancelled caller still waits, or the thread would claim the stream for nobody
            await asyncio.wait([coming])
            self.places.give_back(stream)
            stream.release_claim()
            raise
        try:
            if stream.over:  # another server has finished it meanwhile
                self.places.give_back(stream)
            else:
                await super()._bring(stream)
        finally:
            if not stream.resident:
                stream.release_claim()

    async def _make_ours(self, stream: Stream) -> None:
        """Claim the stream, unless this server has it already, and read it from disk again.

        Raises:
            ApiError: if another server makes it.
        """
        stream.claim = stream.claim or await self._claim(stream)
        if stream.claim is None:
            raise _held()
        with suppress(*UNREADABLE):
            await asyncio.to_thread(stream.refresh)

    async def _claim(self, stream: Stream) -> Claim | None:
        """The claim to the stream, once its holder releases it; None if that takes too long."""
        end = time.monotonic() + HAND_OVER_SECONDS
        while (claim := await asyncio.to_thread(self._fence.claim, stream.folder)) is None:
            if time.monotonic() > end or not stream.folder.has_info:
                return None
            await asyncio.sleep(CLAIM_SECONDS)
        return claim

    async def remove(self, stream: Stream) -> None:
        """See `Streams.remove`; a stream that another server makes stays.

        Raises:
            ApiError: if another server makes it.
        """
        if not stream.resident and stream.claim is None and stream.folder.has_info:
            stream.claim = await self._claim(stream)
            if stream.claim is None:
                raise _held()
        try:
            with _refused():
                await super().remove(stream)
        finally:
            stream.release_claim()

    # Tasks in the background.

    async def _look_at(self, stream: Stream, *, alone: float) -> None:
        if not stream.resident and alone > self.settings.retention_seconds:
            self.refresh(stream.id)
            alone = min(alone, time.monotonic() - stream.left_at)
            if self.holder(stream.id) is not None:
                return
        with suppress(ApiError):
            await super()._look_at(stream, alone=alone)

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(SCAN_SECONDS)
            try:
                self._look_around()
            except OSError as error:  # the disk did not answer; it may the next time
                LOGGER.error("store not read", extra={"fields": {"reason": str(error)}})

    def _look_around(self) -> None:
        """Find streams that others have begun, and begin jobs that no server makes."""
        self.refresh_all()
        for stream in self:
            if stream.info.kind == "video" and self._is_left(stream):
                stream.info = replace(stream.info, status="queued")
                self.places.queue.append(stream)
        self._start_jobs()

    def _is_left(self, job: Stream) -> bool:
        """Whether no server makes the job, and it does not wait in this server's queue."""
        if job.over or job.resident or job.lock.locked() or job in self.places.queue:
            return False
        claim = self._fence.claim(job.folder)
        if claim is not None:
            claim.release()
        return claim is not None

    def _is_waiting(self, job: Stream) -> bool:
        self.refresh(job.id)
        return super()._is_waiting(job)

    async def _run(self, job: Stream) -> None:
        async with job.lock:
            with suppress(OSError):  # unknown counts as not ours; the next search looks again
                job.claim = await asyncio.to_thread(self._fence.claim, job.folder)
            if job.claim is None:  # another server was quicker
                self.places.give_back(job)
                return
        await super()._run(job)


def _held() -> ApiError:
    return ApiError(503, HELD, "another server makes this stream", retry_after=1)


@contextmanager
def _refused() -> Iterator[None]:
    """Within the context, losing a claim refuses the request."""
    try:
        yield
    except ClaimLostError as error:
        raise _held() from error
