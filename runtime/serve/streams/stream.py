"""One stream: a video in the making or at rest, its viewers, and its file."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from plugins.errors import UserError
from runtime.outputs import Mark
from runtime.outputs.mp4 import Mp4Sink
from runtime.prompts.sources import LivePrompts, Policy, PromptChange, Receipt
from runtime.resume.sidecar import Recorded, list_changes
from runtime.resume.state import State, load_state
from runtime.serve.disk.fence import Claim, ClaimLostError
from runtime.serve.disk.folder import OVER, AppliedChange, Status, StreamFolder, StreamInfo
from runtime.serve.disk.index import ChunkIndex
from runtime.serve.disk.sink import IndexedSink, elsewhere
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import StreamSpan, Tracing
from runtime.serve.streams.events import Events
from runtime.serve.streams.pacing import BackgroundPacing, LivePacing
from runtime.serve.streams.viewer import LEAD, Viewer
from runtime.serve.streams.worker import Worker
from runtime.session.producer import DecodeError
from runtime.session.task import VideoTask
from runtime.telemetry.events import ChunkReport
from vmla.config import FRAMES_PER_SECOND

LOGGER = logging.getLogger("vmla.serve")


@dataclass(frozen=True, kw_only=True)
class StreamContext:
    """Objects that all streams of a server share."""

    worker: Worker
    settings: ServeSettings
    metrics: Metrics
    tracing: Tracing
    loop: asyncio.AbstractEventLoop


class Stream:
    """A video with its file and viewers; its methods run on the event loop unless they say otherwise."""

    def __init__(
        self, folder: StreamFolder, info: StreamInfo, context: StreamContext, ended: Callable[[Stream], None]
    ) -> None:
        """The stream in `folder`; `ended` is called, on the event loop, when it has left memory."""
        self.folder, self.info, self._context, self._tell_ended = folder, info, context, ended
        self.index = ChunkIndex(folder.chunks, info.first)
        self.changes = folder.changes()
        self.viewers: set[Viewer] = set()
        self.lock = asyncio.Lock()
        """Held while it comes into memory."""
        self.task: VideoTask | None = None
        self.left_at = time.monotonic()
        """When the last viewer left, the stream came here or, while at rest, somebody last asked for it."""
        self.report: ChunkReport | None = None
        self._pacing = self._new_pacing()
        self._gone = asyncio.Event()
        self._gone.set()
        self._coming = threading.Lock()
        """Held while `begin` puts its video into memory, so that it cannot leave before it is there."""
        self._goal: Status = "paused"
        self._leaving = False
        self._events = Events()
        self._span = StreamSpan()
        self.claim: Claim | None = None
        """The right to make it, while it is in memory, where several servers share the store."""
        self._seen = folder.stamp()
        self._remember()

    # Its properties.

    @property
    def id(self) -> str:
        """The stream's id, which is the name of its folder."""
        return self.info.id

    @property
    def resident(self) -> bool:
        """Whether it is in memory."""
        return self.task is not None

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out of memory."""
        return self._leaving

    @property
    def over(self) -> bool:
        """Whether no more chunks will be made."""
        return self.info.status in OVER

    @property
    def next(self) -> int:
        """The number of the chunk that comes next."""
        return self.index.next

    @property
    def speed(self) -> float:
        """Frames per second of work on the last chunk; 0 before the first."""
        report = self.report
        if report is None:
            return 0.0
        worked = report.denoise_seconds + report.clean_seconds + report.decode_seconds
        return self._context.worker.chunk_frames / max(worked, 1e-9)

    @property
    def expires(self) -> int | None:
        """When it leaves memory if nobody comes, in seconds since 1970; None if it is not there."""
        if not self.resident:
            return None
        alone = 0.0 if self.viewers else time.monotonic() - self.left_at
        return int(time.time() + self.info.lease - alone)

    def prompt_at(self, number: int) -> str:
        """The prompt that chunk `number` shows."""
        before = [change for change in self.changes if change.chunk <= number]
        return before[-1].prompt if before else self.info.prompt

    def events_at(self, number: int) -> tuple[list[str], list[str]]:
        """The ids of changes that took effect at chunk `number`, and of those superseded before it."""
        started = [event for c in self.changes if c.chunk == number for event in c.event_ids]
        return started, self._events.superseded.get(number, [])

    def refresh(self) -> None:
        """Read the stream from disk again, as another server may have continued it.

        Raises:
            OSError, UserError: if its files cannot be read, or are damaged.
        """
        if self.resident or (seen := self.folder.stamp()) == self._seen:
            return
        self.info, self._seen = self.folder.read(), seen
        self.index, self.changes = ChunkIndex(self.folder.chunks, self.info.first), self.folder.changes()
        self.left_at = time.monotonic()
        self._remember()

    def _remember(self) -> None:
        with self._events.lock:
            self._events.remember(event for change in self.changes for event in change.event_ids)

    # Who watches it.

    def attach(self, number: int | None, *, buffer_seconds: float | None) -> Viewer:
        """Add a viewer that takes chunk `number` next, or the newest chunk."""
        worker = self._context.worker
        number = max(self.info.first, self.next - 1) if number is None else number
        viewer = Viewer(
            next=number, endless=self.info.frames is None, chunk_seconds=worker.chunk_seconds,
            clock=worker.clock, buffer_seconds=buffer_seconds,
        )  # fmt: skip
        self.viewers.add(viewer)
        self._rewatch()
        return viewer

    def detach(self, viewer: Viewer) -> None:
        """Forget a viewer who watches no longer."""
        self.viewers.discard(viewer)
        self.left_at = time.monotonic()
        self._rewatch()

    def _rewatch(self) -> None:
        if isinstance(self._pacing, LivePacing):
            # Without viewers only the first chunks are made, so that the first to come sees something at
            # once.
            self._pacing.watch(self.viewers, idle=self.info.first + LEAD)

    def wake(self) -> None:
        """Wake every viewer, to check the stream again."""
        for viewer in self.viewers:
            viewer.news.set()

    # Operations on it.

    def change(self, prompt: str, policy: Policy, event_id: str) -> None:
        """Ask for another prompt from the next chunk on; the same `event_id` counts once.

        Raises:
            UserError: for an empty prompt, or if its prompts are fixed.
        """
        assert self.task is not None
        prompts = self.task.producer.job.prompts
        if not isinstance(prompts, LivePrompts):
            raise UserError("the prompt of this video is fixed")
        with self._events.lock:
            if event_id not in self._events.known:
                self._events.expect(prompts.change(prompt, policy=policy), event_id)

    def begin(self) -> None:
        """Enter memory and make chunks, from the start or from the state on disk; on any thread.

        Raises:
            OSError, UserError: if its state or file has changed, or cannot be read.
        """
        self._pacing = self._new_pacing()
        self._rewatch()
        state = self._state()
        self._goal, self._leaving = "paused", False
        with self._coming:
            self._span = self._context.tracing.stay(self.id, kind=self.info.kind, chunk=self.next)
            try:
                self.task = self._admitted(state)
            except BaseException:
                self._span.end("failed")
                raise
            self._gone.clear()
            self.set(status="ready")

    def _admitted(self, state: State | None) -> VideoTask:
        """Admit the video to the session, from its start or from `state`."""
        context = self._context
        common: dict[str, Any] = {
            "folder": self.folder, "save_every": context.settings.save_every,
            "telemetry": self, "pacing": self._pacing, "on_end": self._on_end,
            "fenced": self._fenced,
        }  # fmt: skip
        if state is not None:
            self._record_changes(Recorded.of(state.video, "its state").changes(), state.snapshot.number)
            return context.worker.resume(state, self._sink(self._mark(state)), **common)
        first = PromptChange(chunk=0, prompts=(self.info.prompt,))
        prompts = LivePrompts.continued([first, *(one.change for one in self.changes)])
        longest = context.settings.limits.stream_seconds
        job = context.worker.order(prompts, frames=self.info.frames, seed=self.info.seed, longest=longest)
        return context.worker.begin(job, self._sink(None), frames=self.info.frames, **common)

    def leave(self, goal: Status = "paused") -> None:
        """Leave memory after the chunk under way, with the state saved; `goal` is the status from then on."""
        if self.task is not None:
            if not (self._leaving and self._goal in OVER):  # the status of an ended stream is final
                self._goal = goal
            self._leaving = True
            self.task.end()
        elif not self.over:
            self.set(status=goal)
            self.wake()

    async def gone(self) -> None:
        """Wait until it is out of memory."""
        await self._gone.wait()

    def snapshot(self) -> State:
        """The state to continue it from elsewhere; on any thread, and waits for the chunk under way.

        Raises:
            UserError: if there is no such state.
        """
        task = self.task
        if task is not None:
            return task.snapshot()
        return load_state(self.folder.state, mend="begin it again")[0]

    def set(self, *, status: Status, error: str | None = None) -> None:
        """Set the stream's status; may be called on any thread.

        It is recorded unless the disk is full, which must not keep a stream from leaving memory: a server
        that starts without the record makes the missing chunks again.
        """
        self.info = replace(self.info, status=status, error=error)
        try:
            with self._fenced():
                self.folder.write(self.info)
        except OSError as failure:
            LOGGER.error("not recorded", extra={"fields": {"stream": self.id, "reason": str(failure)}})

    def release_claim(self) -> None:
        """Release this server's claim to the stream, if it has one."""
        claim, self.claim = self.claim, None
        if claim is not None:
            claim.release()

    def _fenced(self) -> AbstractContextManager[None]:
        """Inside, no other server writes to the stream's folder; see `Claim.held`."""
        return nullcontext() if self.claim is None else self.claim.held()

    # The following methods are called by the threads that make the video.

    def chunk(self, report: ChunkReport) -> None:
        """See `Telemetry.chunk`."""
        before = 0 if self.report is None else self.report.frames
        self.report = report
        self._context.metrics.chunk(report)
        self._span.chunk(report)
        self._context.metrics.frames.inc(report.frames - max(before, report.earlier))

    def prompt(self, state: str, receipt: Receipt) -> None:
        """See `Telemetry.prompt`: a change that is applied is on disk before a chunk is made under it."""
        self._context.metrics.prompt(state, receipt)
        with self._events.lock:
            if state == "superseded":
                self._events.supersede(receipt)
            if state == "applied" and receipt.chunk is not None:
                ids = self._events.apply(receipt, receipt.chunk)
                self._record(receipt.chunk, receipt.prompt, receipt.policy, ids)

    def _heard(self) -> None:
        self._context.loop.call_soon_threadsafe(self.wake)

    def _on_end(self, task: VideoTask) -> None:
        with self._coming:  # a video of one chunk may end before `begin` has returned
            pass
        self._context.loop.call_soon_threadsafe(self._ended, task)

    def _ended(self, task: VideoTask) -> None:
        status, error = self._goal, None
        if isinstance(task.failure, ClaimLostError):
            LOGGER.warning("taken over", extra={"fields": {"stream": self.id}})
        elif task.failure is not None:
            status, error = "failed", self._sentence(task.failure)
        elif task.producer.complete:
            status = "completed"
        self.task, self._leaving = None, False
        with suppress(ClaimLostError), self._fenced():
            if status == "completed" and task.producer.complete:  # not if it has only become too long
                with suppress(OSError):
                    self.folder.state.unlink(missing_ok=True)
            self.set(status=status, error=error)
        self.release_claim()
        self._span.end(status)
        self._gone.set()
        self.left_at = time.monotonic()
        self.wake()
        self._tell_ended(self)

    def _sentence(self, failure: BaseException) -> str:
        """The failure in one sentence for clients, without paths of this machine."""
        LOGGER.error("failed", extra={"fields": {"stream": self.id, "reason": str(failure)}})
        if isinstance(failure, OSError):
            return self._without_path(f"cannot write the video: {failure.strerror or 'the disk refuses'}")
        if isinstance(failure, UserError | DecodeError):
            return self._without_path(str(failure))
        return "something went wrong on the server; its log says what"

    def _without_path(self, said: str) -> str:
        return said.replace(str(self.folder.path), "the stream")

    # On disk.

    def _state(self) -> State | None:
        """The state on disk, with all prompts that are recorded; None if there is none."""
        if not self.folder.state.exists():
            return None
        state = load_state(self.folder.state, mend="begin it again")[0]
        known = Recorded.of(state.video, "its state").changes()
        later = [one.change for one in self.changes if one.chunk >= state.snapshot.number]
        if later:  # what was recorded since counts: chunks were made, and seen, under it
            known = [one for one in known if one.chunk < state.snapshot.number] + later
        return replace(state, video={**state.video, "prompts": list_changes(known), "live": True})

    def _mark(self, state: State) -> Mark:
        """The mark after which the file continues; a stream from another server begins a new file here."""
        here = self.folder.video.exists() or state.snapshot.number != self.info.first
        return state.mark if here else elsewhere(state.mark)

    def _sink(self, mark: Mark | None) -> IndexedSink:
        """The sink of the file, cut after `mark`."""
        self.index.cut(0 if mark is None else mark["bytes"])
        file = Mp4Sink(
            self.folder.video,
            frames_per_second=FRAMES_PER_SECOND,
            scale=self._context.worker.scale,
            after=mark,
        )
        return IndexedSink(file, self.index, self._heard, self._fenced)

    def _record_changes(self, changes: list[PromptChange], number: int) -> None:
        """Record those of `changes` from chunk `number` on that are not recorded yet."""
        recorded = {one.chunk for one in self.changes}
        for change in changes:
            if change.chunk >= number and change.chunk not in recorded and change.chunk:
                with self._events.lock:
                    ids = self._events.at_rest()
                self._record(change.chunk, change.prompts[0], change.policy, ids)

    def _record(self, chunk: int, prompt: str, policy: Policy, ids: tuple[str, ...]) -> None:
        change = AppliedChange(chunk=chunk, prompt=prompt, policy=policy, event_ids=ids)
        with self._fenced():
            self.folder.add_change(change)
        self.changes = [*self.changes, change]

    def _new_pacing(self) -> LivePacing | BackgroundPacing:
        seconds = self._context.worker.chunk_seconds
        if self.info.kind == "video":
            return BackgroundPacing(chunk_seconds=seconds)
        return LivePacing(
            chunk_seconds=seconds, clock=self._context.worker.clock, missed=self._context.metrics.misses.inc
        )
