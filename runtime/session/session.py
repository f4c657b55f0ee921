"""One session: one engine and one copy of the weights make any number of videos at the same time.

Before each chunk, the video whose viewer would run out of frames first is chosen (earliest deadline first). A
video whose sink takes nothing waits without holding up the others. As many videos are admitted as the memory
plan says will fit; only one at a time uses scratch memory, for passes and for decoding. A video that fails
ends alone.

Threads: one thread makes chunks (`step`, `run`, `serve`). `admit`, `restore`, `close` and everything of a
`VideoTask` may be called from any thread at any time, and take effect between two chunks
(`runtime.session.commands`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter
from types import TracebackType
from typing import Any

from torch import Tensor

from plugins.errors import UserError
from runtime.device.cuda_graphs import SideStream
from runtime.outputs import FrameSink
from runtime.planning.job import Job
from runtime.planning.plan import VideoPlan
from runtime.prompts.sources import LivePrompts, PromptSchedule
from runtime.resume.autosave import Autosave
from runtime.resume.sidecar import DEFAULTS, Recorded, describe_model, describe_video
from runtime.resume.state import State
from runtime.rollout.graphs import ChunkGraphs
from runtime.rollout.rollout import ChunkPasses, Rollout
from runtime.session.commands import CommandQueue
from runtime.session.outcome import in_one_line
from runtime.session.pacing import Pacing
from runtime.session.producer import Admission, VideoProducer
from runtime.session.replay import OF_A_MODEL, OF_A_VIDEO, refuse_another
from runtime.session.task import VideoTask
from runtime.telemetry.events import NoTelemetry, Telemetry
from vmla.config import FRAMES_PER_SECOND
from vmla.scheduler import Sampler

SHARED = (
    "checkpoint", "device", "text_device", "dtype", "engine_folder", "decoder_file", "threads", "processes",
)  # fmt: skip
"""Attributes that all jobs of a session have in common."""
BLOCKED_SECONDS = 0.02
"""Seconds between two checks whether a sink has taken something, while every sink is full: a fraction of a
chunk's time, so that no viewer notices."""

OnEnd = Callable[[VideoTask], None]


class Session:
    """Makes videos with one engine and one decoder; a context manager."""

    def __init__(
        self, job: Job, *, memory: int | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        """Load the engine and the decoder of `job`.

        Args:
            job: of the first video; all others must have its checkpoint, engine, decoder, device and dtype.
            memory: bytes for weights and videos together. As many videos are admitted as fit, all with the
                sampler of `job`; None admits any number.
            clock: returns seconds; deadlines are measured by it.
        """
        self._job, self._memory, self._clock = job, memory, clock
        self._engine, self._decoder = job.engine(), job.decoders()
        self._side = SideStream(job.device)
        self._graphs: dict[Sampler, ChunkGraphs] = {}
        """One set for all videos of a sampler."""
        self._commands, self._closed = CommandQueue(), threading.Event()
        self._tasks: list[VideoTask] = []
        """The videos that have not ended; changed only between two chunks."""
        self._lock, self._admitted, self._held = threading.Lock(), 0, 0
        self._described = threading.Lock()

    def __enter__(self) -> Session:
        """Return the session; leaving the block ends its videos and closes the engine."""
        return self

    @cached_property
    def plan(self) -> VideoPlan:
        """The memory of one video, and that shared by all; computing it takes a second."""
        return self._job.plan()

    @cached_property
    def capacity(self) -> int | None:
        """How many videos fit at once; None if memory is unlimited."""
        return None if self._memory is None else self.plan.videos_in(self._memory)

    def admit(
        self, job: Job, sink: FrameSink, *, frames: int | None, telemetry: Telemetry | None = None,
        autosave: Autosave | None = None, state: State | None = None, on_end: OnEnd | None = None,
        pacing: Pacing | None = None,
        latents: Callable[[Tensor], object] | None = None,
    ) -> VideoTask:  # fmt: skip
        """Begin the video of `job`, or resume it from `state`.

        Args:
            job: must have the session's checkpoint, engine, decoder, device and dtype.
            sink: takes the frames; with a `state`, it must stand where the state's mark says.
            frames: number of the whole video; None makes it endless, until it is ended or cancelled.
            telemetry: told of every chunk and of every change of the prompt.
            autosave: saves the state as the video is made, and when it ends early.
            state: where to resume.
            on_end: called on a thread of its own once the sink has all frames.
            latents: called with each chunk's latents, on the thread that makes chunks.
            pacing: says when chunks are wanted; without it, as soon as the sink takes them.

        Raises:
            UserError: if memory does not suffice for another video, `job` is not of the session's kind, or
                the model fails at its negative prompt.
        """
        self._check_kind(job)
        asked = Admission(
            job=job, sink=sink, frames=frames, telemetry=telemetry or NoTelemetry(), autosave=autosave,
            state=state, latents=latents, pacing=pacing,
        )  # fmt: skip
        number = self._reserve()
        try:
            task = VideoTask(
                number, self._producer(asked), self._commands, clock=self._clock,
                describe=partial(self.describe, job, frames=frames), on_end=partial(self._release, on_end),
            )  # fmt: skip
        except BaseException as error:
            self._give_back()
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            raise UserError(f"cannot begin the video: {in_one_line(error)}") from error
        self._commands.post(lambda: self._tasks.append(task))
        return task

    def restore(
        self, state: State, sink: FrameSink, *, telemetry: Telemetry | None = None,
        autosave: Autosave | None = None, on_end: OnEnd | None = None, pacing: Pacing | None = None,
    ) -> VideoTask:  # fmt: skip
        """Resume the video of `state`, which this or another session has made, as if it had never stopped.

        A state may be restored any number of times; each resumed video has the same frames.

        Raises:
            UserError: if it is a state of another model, decoder, device or number of threads.
        """
        recorded = {**DEFAULTS, **state.video}
        if not recorded.keys() >= {*OF_A_MODEL, *OF_A_VIDEO}:
            raise UserError("this state does not describe its video; take it with `snapshot`")
        refuse_another("this state", OF_A_MODEL, recorded, self.describe(self._job, frames=None))
        job, frames = self.job_of(state), state.video["frames"]
        return self.admit(
            job, sink, frames=frames, telemetry=telemetry, autosave=autosave, state=state, on_end=on_end,
            pacing=pacing,
        )  # fmt: skip

    def job_of(self, state: State) -> Job:
        """The job of the video of `state`, with the prompts that it has had and those to come."""
        video = Recorded.of(state.video, "this state")
        return replace(
            self._job,
            prompts=LivePrompts.continued(video.changes()) if video.live else PromptSchedule(video.changes()),
            seed=video.seed,
            chunks=video.chunks or self._job.chunks,
            sampler=video.sampler,
            start=video.start,
        )

    def describe(self, job: Job, *, frames: int | None, scale: int = 1) -> dict[str, Any]:
        """All that determines the frames of a video, as JSON values; hashes all weights the first time."""
        with self._described:
            model = self._model
        return {**describe_video(job, frames=frames, scale=scale), **model}

    @cached_property
    def _model(self) -> Mapping[str, Any]:
        return describe_model(self._job)

    def step(self, stop: threading.Event | None = None) -> VideoTask | None:
        """Make one chunk of the video that is due first.

        While every sink is full it waits, until `stop` is set.

        Returns:
            The video whose chunk was made; None if there is no chunk to make, or `stop` was set.
        """
        waited = False
        while stop is None or not stop.is_set():
            with self._commands.exclusive():
                task = self._due()
                if task is None:
                    return None
                if not task.producer.blocked:
                    task.step()
                    return task
            began = perf_counter()
            self._commands.wait(BLOCKED_SECONDS)
            task.producer.decoding.stalled(perf_counter() - began, again=waited)
            waited = True
        return None

    def _due(self) -> VideoTask | None:
        self._tasks = [task for task in self._tasks if task.status != "ended"]
        running = [task for task in self._tasks if task.status == "running"]
        return min(running, key=lambda one: (one.producer.blocked, one.deadline, one.number), default=None)

    def run(self, stop: threading.Event | None = None) -> None:
        """Make all admitted videos, and wait for their last frames.

        Returns when each has ended or is paused, or after the chunk under way once `stop` is set.
        """
        while self.step(stop) is not None or self._wait_for_one():
            pass

    def _wait_for_one(self) -> bool:
        """Wait for the last frames of a video that is ending; False if there is none."""
        ending = next((task for task in self._tasks if task.status == "ending"), None)
        return ending is not None and ending.wait()

    def serve(self) -> None:
        """Make all admitted videos and wait for more, until `close` is called."""
        while not self._closed.is_set():
            if self.step(self._closed) is None:
                self._commands.wait()

    def close(self) -> None:
        """Admit no more videos, and let `serve` return after the chunk under way."""
        self._closed.set()
        self._commands.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the remaining videos, saving states unless an exception is under way; close the engine."""
        self.close()
        failure = error if isinstance(error, Exception) else None
        with self._commands.exclusive():
            tasks = list(self._tasks)
            for task in tasks:
                task.close(save=error is None, failure=failure)
        for task in tasks:
            task.wait()
        self._engine.close()

    def _check_kind(self, job: Job) -> None:
        # The memory plan counts the noise of one sampler's steps.
        for name in SHARED if self._memory is None else ("sampler", *SHARED):
            if getattr(job, name) != getattr(self._job, name):
                raise UserError(f"this video has another {name} than the session; make it in another session")

    def _reserve(self) -> int:
        """Count another video against the memory budget, and return its number."""
        with self._lock:
            if self._closed.is_set():
                raise UserError("the session is closed; begin another one")
            if self._memory is not None and self._held >= (most := self.plan.videos_in(self._memory)):
                raise UserError(
                    f"{self._memory:,} bytes hold {most} videos and no more; "
                    f"end one, or allow {self.plan.video_bytes:,} bytes for another"
                    + self.plan.remedy(self._held + 1, self._memory)
                )
            self._held += 1
            self._admitted += 1
            return self._admitted - 1

    def _give_back(self) -> None:
        with self._lock:
            self._held -= 1

    def _release(self, on_end: OnEnd | None, task: VideoTask) -> None:
        """Free the place of a video that has ended before its owner is notified, which may fail."""
        self._give_back()
        if on_end is not None:
            on_end(task)

    def _producer(self, asked: Admission) -> VideoProducer:
        job = asked.job
        with self._lock:
            if job.sampler not in self._graphs:
                self._graphs[job.sampler] = ChunkGraphs(ChunkPasses(self._engine), job.sampler)
        rollout = Rollout(
            self._engine, job.prompts, job.sampler,
            seeds=[job.seed], threads=job.cores.denoiser, graphs=self._graphs[job.sampler],
            start=job.start_latents(0 if asked.state is None else asked.state.snapshot.number),
        )  # fmt: skip
        return VideoProducer(
            asked, rollout, self._decoder(), side=self._side,
            chunk_seconds=self._frames_per_chunk(asked) / FRAMES_PER_SECOND,
        )  # fmt: skip

    def _frames_per_chunk(self, asked: Admission) -> float:
        if asked.frames is None:
            config = self._job.checkpoint.model_config()
            return config.chunk * self._job.decoding.sizes().temporal_ratio
        # Without frames nobody watches; deadlines then only keep all videos at the same number of chunks.
        return (asked.frames or asked.job.chunks) / asked.job.chunks
