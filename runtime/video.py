"""A video in the making, as Python sees it: chunks of frames to iterate over, and what steers it."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor

from runtime.diffusers_arguments import Form
from runtime.outputs import Frames
from runtime.outputs.frame_queue import FrameQueue
from runtime.prompts.sources import PromptSource
from runtime.resume.state import State
from runtime.session.outcome import raise_failure
from runtime.session.task import Status, VideoTask


class GeneratedVideo:
    """An iterator over the frames of each chunk, [n, H, W, 3] uint8, red green blue.

    The pipeline works a few chunks ahead of whoever takes them, and then waits. A video that nobody
    holds any more, or whose `with` block is left, is cancelled.
    """

    def __init__(
        self, task: VideoTask, frames: FrameQueue, *, pipeline: Any, form: Form | None = None,
        latents: list[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """See `runtime.pipeline.VideoPipeline`, which stays open as long as the video is held."""
        self._pipeline, self._form = pipeline, form or Form()
        self._task, self._frames, self._taken = task, frames, 0
        self._latents: list[Tensor] = [] if latents is None else latents
        self._whole: Any = None
        self._abandon = weakref.finalize(self, frames.abandon)

    @property
    def prompts(self) -> PromptSource:
        """Its prompts; if they are `LivePrompts`, `prompts.change(...)` changes them on the way."""
        return self._task.stages.job.prompts

    @property
    def status(self) -> Status:
        """`running`, `paused`, `ending` (all is made, but not all taken) or `ended`."""
        return self._task.status

    @property
    def chunks(self) -> int:
        """How many chunks it has in all; of an endless one, as many as last a day."""
        return self._task.stages.job.chunks

    def __iter__(self) -> GeneratedVideo:
        """The video itself: a second loop goes on where the first was left."""
        return self

    def __next__(self) -> Frames:
        """The frames of the next chunk, as soon as they are there.

        Raises:
            UserError: if the video failed, in one line.
        """
        frames = self._frames.take()
        if frames is None:
            self._task.wait()
            if not self._frames.abandoned:
                raise_failure(self._task)
            raise StopIteration
        self._tell()
        return frames

    @property
    def frames(self) -> Any:
        """All frames that were not taken yet, as a batch of one and in the form that was asked for, as
        diffusers' pipelines hand them over: `np` is float32 [1, n, H, W, 3] in [0, 1].

        Waits for the end of the video, and keeps its frames; for long ones, iterate.

        Raises:
            UserError: if the video failed, in one line.
        """
        if self._whole is None:
            self._whole = self._form.of(list(self), self._latents)
        return self._whole

    def _tell(self) -> None:
        """Call back for a chunk that is taken; whoever is called may end the video."""
        number, self._taken = self._taken, self._taken + 1
        if self._form.callback is None:
            return
        self._form.callback(self._pipeline, number, 0.0, {"latents": self._latents[number]})
        if self._pipeline._interrupt:
            self._pipeline._interrupt = False
            self.close()

    def pause(self) -> None:
        """Make no more chunks until `resume`."""
        self._task.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._task.resume()

    def snapshot(self) -> State:
        """All that is needed to go on with the very next frame that was not taken yet.

        The video itself goes on. `VideoPipeline.restore` takes the state, in this process or another;
        `State.save` and `State.load` bring it to disk and back.

        Raises:
            UserError: if the video has failed or was closed.
        """
        self._task.describe()  # may read all weights: not while nothing bounds the queue
        with self._frames.unbounded():
            state = self._task.snapshot()
            return replace(state, pending=self._frames.untaken(state.mark))

    def close(self) -> None:
        """End it: what is not taken is dropped. A video that is over may be closed."""
        self._abandon()
        self._task.cancel()

    def __enter__(self) -> GeneratedVideo:
        """The video itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()
