"""The engine of the server and the one thread that makes chunks with it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from functools import partial
from time import perf_counter

from runtime.outputs import FrameSink, NullSink
from runtime.planning.job import Job
from runtime.prompts.sources import LivePrompts
from runtime.resume.autosave import Autosave
from runtime.resume.state import State
from runtime.serve.disk.folder import StreamFolder
from runtime.serve.disk.sink import Fenced
from runtime.session.destination import choose_scale
from runtime.session.generate import load_session
from runtime.session.outcome import raise_failure
from runtime.session.pacing import Pacing
from runtime.session.session import OnEnd
from runtime.session.task import VideoTask
from runtime.telemetry.events import Telemetry
from vmla.config import FRAMES_PER_SECOND
from vmla.world.caption import warning_for

LOGGER = logging.getLogger("vmla.serve")
WARMING = 2
"""Chunks that are made and dropped at the start, so that everything a stream needs is loaded."""


class Worker:
    """One session and its thread; all methods but `close` may be called from any thread."""

    def __init__(self, job: Job, *, memory: int, most: int) -> None:
        """Load the engine of `job`; hold as many streams as `memory` bytes do, and at most so many."""
        self.job = job
        self.session = load_session(job, memory)
        self.places = min(self.session.capacity or 0, most)
        self.scale = choose_scale(job.height, None)
        self.clock = perf_counter
        self.config, self.world = job.checkpoint.model_config(), job.checkpoint.world()
        self.chunk_frames = self.config.chunk * job.decoding.sizes().temporal_ratio
        self.chunk_seconds = self.chunk_frames / FRAMES_PER_SECOND
        self.height, self.width = job.height * self.scale, job.width * self.scale
        self._thread = threading.Thread(target=self._serve, name="video-chunks", daemon=True)
        self.template: State | None = None
        """A state of this model, with which received ones are compared; set once `start` has returned."""

    def start(self) -> None:
        """Begin to make chunks; returns once the first ones have been made and dropped.

        Raises:
            UserError: if the model makes none.
        """
        self._thread.start()
        job, _ = self.job.another("a video", seconds=1.0, seed=0, steps=None)
        task = self.session.admit(job, NullSink(), frames=None, pacing=_WarmUpPacing())
        while task.made < WARMING and not task.over:
            time.sleep(0.005)
        raise_failure(task)
        self.template = task.snapshot()
        task.cancel()
        task.wait()

    @property
    def alive(self) -> bool:
        """Whether the thread that makes chunks is running."""
        return self._thread.is_alive()

    def warnings(self, prompt: str) -> list[str]:
        """Warnings about words of `prompt` that the model does not know, a sentence each."""
        warning = None if self.world is None else warning_for(prompt, self.world)
        return [] if warning is None else [warning]

    def order(self, prompts: LivePrompts, *, frames: int | None, seed: int, longest: float) -> Job:
        """The job of a new video; an endless one ends after `longest` seconds.

        Raises:
            UserError: for an empty prompt or an impossible length.
        """
        seconds = longest if frames is None else frames / FRAMES_PER_SECOND
        return self.job.another(prompts, seconds=seconds, seed=seed, steps=None)[0]

    def begin(
        self, job: Job, sink: FrameSink, *, frames: int | None, folder: StreamFolder, save_every: float,
        telemetry: Telemetry, pacing: Pacing, on_end: OnEnd, fenced: Fenced = nullcontext,
    ) -> VideoTask:  # fmt: skip
        """Begin a video whose states are written to `folder`."""
        autosave = self._autosave(job, frames, folder, save_every, fenced, saved=False)
        return self.session.admit(
            job, sink, frames=frames, telemetry=telemetry, autosave=autosave, on_end=on_end, pacing=pacing
        )

    def resume(
        self, state: State, sink: FrameSink, *, folder: StreamFolder, save_every: float,
        telemetry: Telemetry, pacing: Pacing, on_end: OnEnd, fenced: Fenced = nullcontext,
    ) -> VideoTask:  # fmt: skip
        """Resume the video of `state`.

        Raises:
            UserError: if it is a state of another model, decoder, device or number of threads.
        """
        job, frames = self.session.job_of(state), state.video["frames"]
        autosave = self._autosave(job, frames, folder, save_every, fenced, saved=True)
        return self.session.restore(
            state, sink, telemetry=telemetry, autosave=autosave, on_end=on_end, pacing=pacing
        )

    def _autosave(
        self, job: Job, frames: int | None, folder: StreamFolder, every: float, fenced: Fenced, *,
        saved: bool,
    ) -> Autosave:  # fmt: skip
        describe = partial(self.session.describe, job, frames=frames, scale=self.scale)
        return Autosave(folder.video, describe, every=every, saved=saved, fenced=fenced)

    def close(self) -> None:
        """End all videos with their states on disk, and unload the model."""
        self.session.close()
        self._thread.join()

    def _serve(self) -> None:
        try:
            with self.session:
                self.session.serve()
        except BaseException:
            LOGGER.exception("no more chunks are made")
            raise


class _WarmUpPacing:
    """The pacing of the warm-up video, which is `WARMING` chunks long."""

    def wanted(self, made: int) -> bool:
        """Whether fewer chunks than that are made."""
        return made < WARMING

    def deadline(self, made: int) -> float:
        """Return any value: there is no other video yet."""
        return 0.0
