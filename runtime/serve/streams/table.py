"""All streams of a server: begins, forks, takes over, loads, unloads and forgets them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from plugins.errors import UserError
from runtime.resume.state import State
from runtime.serve.disk.fence import ClaimLostError
from runtime.serve.disk.folder import Kind, StreamFolder, StreamInfo
from runtime.serve.disk.store import Store
from runtime.serve.edge.errors import FULL, ApiError, api_error, busy, not_found
from runtime.serve.edge.logs import log
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing
from runtime.serve.streams.places import Places
from runtime.serve.streams.retention import longest_unwatched, seconds_until_room
from runtime.serve.streams.stream import Stream, StreamContext
from runtime.serve.streams.worker import Worker
from vmla.config import FRAMES_PER_SECOND

LOGGER = logging.getLogger("vmla.serve")
LOOK_SECONDS = 0.5
"""Seconds between two searches for streams that may be unloaded."""


class Streams:
    """The streams by name; used on the event loop, with slow work on other threads."""

    def __init__(
        self, store: Store, worker: Worker, settings: ServeSettings, metrics: Metrics, tracing: Tracing
    ) -> None:
        self.store, self.worker, self.settings, self._metrics = store, worker, settings, metrics
        self._tracing = tracing
        self.places = Places(worker.places, metrics)
        self._streams: dict[str, Stream] = {}
        self._new: set[str] = set()
        """Names of streams whose folders are being written."""
        self._context: StreamContext | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self.ready = False
        self.handing_over = False
        """Whether other servers are about to continue the streams that are made here."""

    # From start to end.

    async def start(self) -> None:
        """Load the streams on disk and begin to make chunks."""
        loop = asyncio.get_running_loop()
        self._context = StreamContext(
            worker=self.worker,
            settings=self.settings,
            metrics=self._metrics,
            tracing=self._tracing,
            loop=loop,
        )
        await asyncio.to_thread(self.worker.start)
        for folder in self.store.folders():
            await asyncio.to_thread(self._load, folder)
        self._looking = asyncio.create_task(self._look())
        self.ready = True
        self._start_jobs()

    def _load(self, folder: StreamFolder) -> None:
        """Add the stream in `folder`; one that cannot be read is left alone, and the others are served."""
        try:
            info = folder.read()
            if info.status == "ready":
                info = replace(info, status="queued" if info.kind == "video" else "paused")
            stream = self.add(folder, info)
        except (OSError, UserError) as error:
            LOGGER.warning("unreadable", extra={"fields": {"stream": folder.path.name, "reason": str(error)}})
            return
        if info.kind == "video" and info.status == "queued":
            self.places.queue.append(stream)

    async def close(self) -> None:
        """Stop making videos, with their states on disk, and release the store."""
        self.ready = False
        if self._looking is not None:
            self._looking.cancel()
        await self._rest()
        await asyncio.to_thread(self.worker.close)
        self.store.close()

    async def _rest(self) -> None:
        """Put all streams that are in memory to rest, with their states on disk."""
        await asyncio.gather(*self._jobs, return_exceptions=True)
        there = [stream for stream in self if stream.resident]
        for stream in there:
            stream.leave("queued" if stream.info.kind == "video" else "paused")
        for stream in there:
            await stream.gone()

    # Look-ups.

    def __iter__(self) -> Iterator[Stream]:
        """Iterate over all streams, those at rest included."""
        return iter(list(self._streams.values()))

    def get(self, name: str, kind: Kind) -> Stream:
        """The stream of that name, for somebody who asks for it: it is not forgotten soon.

        Raises:
            ApiError: if there is none.
        """
        stream = self._streams.get(name)
        if stream is None or stream.info.kind != kind:
            raise not_found(kind)
        if not stream.resident:
            stream.left_at = time.monotonic()
        return stream

    @property
    def viewers(self) -> int:
        """Number of viewers of all streams together."""
        return sum(len(stream.viewers) for stream in self._streams.values())

    def has(self, name: str) -> bool:
        """Whether there is a stream of that name, even one that is being written or cannot be read."""
        return name in self._streams or name in self._new or self.store.folder(name).path.exists()

    def measure(self) -> None:
        """Update the metrics that are computed only when they are collected."""
        self._metrics.count_streams(Counter((one.info.kind, one.info.status) for one in self))
        self._metrics.resident.set(sum(one.resident for one in self))
        self._metrics.viewers.set(self.viewers)
        self._metrics.waiting.set(len(self.places.queue))

    # Operations on streams.

    async def begin(
        self, kind: Kind, *, prompt: str, seed: int, frames: int | None, lease: float | None = None
    ) -> Stream:
        """Begin a stream, in memory at once unless it is a job, which waits for its turn.

        Raises:
            ApiError: if there is no room.
        """
        await self.make_room(kind)
        name = self.store.new_name(kind)
        info = StreamInfo(
            id=name, kind=kind, prompt=prompt, seed=seed, frames=frames, created=time.time(),
            lease=self.settings.lease_seconds if lease is None else lease,
        )  # fmt: skip
        stream = await self.new(info, lambda folder: folder.write(info))
        log("begun", stream=name, kind=kind)
        if kind == "video":
            self.places.queue.append(stream)
            self._start_jobs()
        else:
            await self.activate_new(stream)
        return stream

    async def new(self, info: StreamInfo, write: Callable[[StreamFolder], object]) -> Stream:
        """Add a stream whose folder `write` fills on another thread; if it fails, the folder is removed.

        Raises:
            OSError: if it cannot be written.
        """
        folder = self.store.folder(info.id)
        self._new.add(info.id)
        try:
            await asyncio.to_thread(write, folder)
            return self.add(folder, info)
        except OSError:
            with suppress(OSError):
                await asyncio.to_thread(folder.remove)
            raise
        finally:
            self._new.remove(info.id)

    async def make_room(self, kind: Kind) -> None:
        """Make sure that a new stream has room, if need be by removing sessions that were left long ago.

        Raises:
            ApiError: naming the limit that is reached, and when there may be room.
        """
        limits = self.settings.limits
        if not self.ready:
            raise ApiError(503, "not_ready", "the server is starting or stopping", retry_after=5)
        if kind == "video" and len(self.places.queue) >= limits.waiting:
            raise busy(f"{limits.waiting} jobs wait already; try again later", retry_after=30)
        while len(self._streams) + len(self._new) >= limits.stored:
            if (oldest := longest_unwatched(self, self.settings)) is None:
                why = f"{limits.stored} streams are stored, each made, watched, recently used or a job"
                wait = seconds_until_room(self, self.settings)
                raise busy(f"{why}; delete one, or try again later", retry_after=wait)
            log("makes way", stream=oldest.id)
            try:
                await self.remove(oldest)
            except (ApiError, OSError) as error:  # another server makes it, or its files cannot be removed
                oldest.left_at = time.monotonic()
                LOGGER.error("not put away", extra={"fields": {"stream": oldest.id, "reason": str(error)}})

    async def activate(self, stream: Stream) -> None:
        """Bring `stream` into memory, unless it is there, or over.

        Raises:
            ApiError: if there is no place, or it cannot be continued.
        """
        async with stream.lock:
            if stream.leaving:
                await stream.gone()
            if stream.over or stream.resident:
                return
            if not self.ready:
                raise ApiError(503, "not_ready", "the server is starting or stopping", retry_after=5)
            try:
                await self.places.take(stream)
                await self._bring(stream)
            finally:
                self._start_jobs()

    async def _bring(self, stream: Stream) -> None:
        """Load `stream` into its place; a cancelled caller still waits, or the place would count twice."""
        coming = asyncio.ensure_future(asyncio.to_thread(stream.begin))
        try:
            await asyncio.shield(coming)
        except asyncio.CancelledError:
            await asyncio.wait([coming])
            if coming.exception() is not None:
                self.places.give_back(stream)
            raise
        except (UserError, OSError) as error:
            self.places.give_back(stream)
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            log("not brought back", stream=stream.id, reason=str(error))
            raise ApiError(409, "not_resumable", "this stream cannot be continued") from error
        except BaseException:
            self.places.give_back(stream)
            raise

    async def pause(self, stream: Stream) -> None:
        """Unload `stream`; one that is being loaded is loaded first."""
        async with stream.lock:
            stream.leave("paused")
            await stream.gone()

    async def activate_new(self, stream: Stream) -> None:
        """Activate a new stream; if that fails, nothing of `stream` is left behind.

        Raises:
            ApiError: if there is no place, or it cannot be continued.
        """
        try:
            await self.activate(stream)
        except (ApiError, OSError):
            await self.remove(stream)
            raise

    async def snapshot(self, stream: Stream) -> State:
        """The state of `stream` after the chunk under way.

        Raises:
            ApiError: if it has none.
        """
        try:
            try:
                return await asyncio.to_thread(stream.snapshot)
            except UserError:
                if stream.resident and not stream.leaving:
                    raise
                await stream.gone()  # it has left memory meanwhile: its state is on disk now
                return await asyncio.to_thread(stream.snapshot)
        except (UserError, FileNotFoundError) as error:
            raise ApiError(409, "no_state", "there is no state to continue: it failed or is over") from error

    async def remove(self, stream: Stream) -> None:
        """End `stream`, and remove it with its files."""
        self._streams.pop(stream.id, None)
        with suppress(ValueError):
            self.places.queue.remove(stream)
        async with stream.lock:
            if stream.resident:
                stream.leave("stopped")
                await stream.gone()
            elif not stream.over:
                stream.leave("stopped")
        stream.wake()  # viewers of a deleted stream are told
        await asyncio.to_thread(stream.folder.remove)
        log("removed", stream=stream.id)

    # Tasks in the background.

    def add(self, folder: StreamFolder, info: StreamInfo) -> Stream:
        """Add the stream in `folder` to the table, and return it."""
        assert self._context is not None
        stream = Stream(folder, info, self._context, self._ended)
        self._streams[stream.id] = stream
        return stream

    def _ended(self, stream: Stream) -> None:
        """Note that `stream` has left memory."""
        self.places.give_back(stream)
        log("out of memory", stream=stream.id, status=stream.info.status)
        if stream.info.kind == "video" and stream.info.status == "queued":
            self.places.queue.appendleft(stream)
        self._start_jobs()

    def _start_jobs(self) -> None:
        while self.ready and (job := self.places.next_job(self._is_waiting)) is not None:
            self.places.hold(job)
            running = asyncio.create_task(self._run(job))
            self._jobs.add(running)
            running.add_done_callback(self._jobs.discard)

    def _is_waiting(self, job: Stream) -> bool:
        return job.id in self._streams and job.info.kind == "video" and job.info.status == "queued"

    async def _run(self, job: Stream) -> None:
        async with job.lock:
            if not self._is_waiting(job):  # it was deleted a moment ago
                self.places.give_back(job)
                return
            try:
                await self._bring(job)
            except ClaimLostError:
                pass  # the next server records its end
            except ApiError as error:
                job.set(status="failed", error=error.message)
            except Exception as error:  # noqa: BLE001 - it fails alone; the log has all of it
                job.set(status="failed", error=api_error(error, job.id).message)

    async def _look(self) -> None:
        """Unload unwatched streams, end those that are too long, and forget those unused for long."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for stream in self:
                try:
                    await self._look_at(stream, alone=0.0 if stream.viewers else now - stream.left_at)
                except OSError as error:  # check the others all the same, and this one the next time
                    fields = {"stream": stream.id, "reason": str(error)}
                    LOGGER.error("not put away", extra={"fields": fields})

    async def _look_at(self, stream: Stream, *, alone: float) -> None:
        longest = self.settings.limits.stream_seconds * FRAMES_PER_SECOND
        if stream.info.kind == "session" and stream.resident and not stream.leaving:
            if alone > stream.info.lease:
                stream.leave("paused")
            elif stream.index.frames > longest:
                stream.leave("completed")
        unwanted = not (stream.resident or self._is_waiting(stream))
        if unwanted and alone > self.settings.retention_seconds:
            await self.remove(stream)
