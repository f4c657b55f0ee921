"""A video that is being made, for Python: an iterator over its frames, with controls."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import TracebackType

from runtime.outputs import Frames
from runtime.outputs.frame_queue import FrameQueue
from runtime.prompts.sources import PromptSource
from runtime.resume.state import State
from runtime.session.outcome import raise_failure
from runtime.session.task import Status, VideoTask


class GeneratedVideo:
    """An iterator over the frames of each chunk, [n, H, W, 3] uint8, red green blue.

    The pipeline works a few chunks ahead of the caller, and then waits. A video that is garbage collected,
    or whose `with` block is left, is cancelled.
    """

    def __init__(self, task: VideoTask, frames: FrameQueue, *, pipeline: object) -> None:
        """See `runtime.pipeline.VideoPipeline`, which stays open as long as the video is held."""
        self._pipeline = pipeline
        self._task, self._frames = task, frames
        self._abandon = weakref.finalize(self, frames.abandon)

    @property
    def prompts(self) -> PromptSource:
        """The source of its prompts; that of `LivePrompts` has `change(...)`."""
        return self._task.stages.job.prompts

    @property
    def status(self) -> Status:
        """`running`, `paused`, `ending` (all chunks are made, but not all taken) or `ended`."""
        return self._task.status

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
        return frames

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
        self._task.describe()  # may hash all weights, which must not happen while the queue is unbounded
        with self._frames.unbounded():
            state = self._task.snapshot()
            return replace(state, pending=self._frames.untaken(state.mark))

    def close(self) -> None:
        """Cancel the video and drop the frames that were not taken. Closing it again does nothing."""
        self._abandon()
        self._task.cancel()

    def __enter__(self) -> GeneratedVideo:
        """Return the video itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the video."""
        self.close()
