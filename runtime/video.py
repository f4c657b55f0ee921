"""A video that is being made, for Python: an iterator over its frames, with controls."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor

from runtime.diffusers_arguments import Form
from runtime.frame_queue import FrameQueue
from runtime.outputs import Frames
from runtime.prompts.sources import PromptSource
from runtime.resume.state import State
from runtime.session.outcome import raise_failure
from runtime.session.task import Status, VideoTask


class GeneratedVideo:
    """An iterator over the frames of each chunk, [n, H, W, 3] uint8, red green blue.

    The pipeline works a few chunks ahead of the caller, and then waits. A video that is garbage collected,
    or whose `with` block is left, is cancelled.
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
        """The source of its prompts; that of `LivePrompts` has `change(...)`."""
        return self._task.producer.job.prompts

    @property
    def status(self) -> Status:
        """`running`, `paused`, `ending` (all chunks are made, but not all taken) or `ended`."""
        return self._task.status

    @property
    def chunks(self) -> int:
        """How many chunks it has in all; of an endless one, as many as last a day."""
        return self._task.producer.job.chunks

    def __iter__(self) -> GeneratedVideo:
        """Return the video itself: a second loop goes on where the first one stopped."""
        return self

    def __next__(self) -> Frames:
        """Wait for the frames of the next chunk and return them.

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
        """All frames that were not taken yet, as a batch of one, in the form that `output_type` names.

        `np` is float32 [1, n, H, W, 3] in [0, 1]. Waits for the end of the video, and holds all of its frames
        in memory; for long ones, iterate.

        Raises:
            UserError: if the video failed, in one line.
        """
        if self._whole is None:
            self._whole = self._form.of(list(self), self._latents)
        return self._whole

    def _tell(self) -> None:
        """Call back for a chunk that was taken; the callback may end the video."""
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
        """Make chunks again after `pause`."""
        self._task.resume()

    def snapshot(self) -> State:
        """The state from which `VideoPipeline.restore` resumes at the next frame not yet taken.

        The video itself goes on. Another process may restore the state; `State.save` and `State.load` keep
        it on disk.

        Raises:
            UserError: if the video has failed or was closed.
        """
        self._task.describe()  # may hash all weights: not while the queue is unbounded
        with self._frames.unbounded():
            state = self._task.snapshot()
            return replace(state, pending=self._frames.untaken(state.mark))

    def close(self) -> None:
        """Cancel the video and drop the frames that were not taken. Closing it again does nothing."""
        self._abandon()
        self._task.cancel()

    def __enter__(self) -> GeneratedVideo:
        """Return the video; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the video, finished or not; see `close`."""
        self.close()
