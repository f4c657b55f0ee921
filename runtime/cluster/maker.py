"""One worker of a pool: a loaded model, which makes one video after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from runtime.prompts.videos_file import VideoEntry
from runtime.resume.sidecar import DEFAULTS, is_sidecar, sidecar_path
from runtime.resume.state import load_state, state_path
from runtime.session.generate import load_session, make_in, orders_of
from runtime.session.replay import DETERMINING, OF_A_VIDEO, Order, refuse_another


@dataclass(frozen=True, kw_only=True)
class Made:
    """The outcome of a video, in values that travel between processes."""

    name: str
    frames: int = 0
    made: int = 0
    """How many of these frames this run has made."""
    seconds: float = 0.0
    complete: bool = False
    failure: str | None = None
    """Why it ended early, in one line; None if it did not, or was stopped."""


class VideoMaker:
    """Makes videos in a folder that all workers share; `stop` may be called from another thread."""

    def __init__(
        self, order_of: Callable[[str], Order], folder: Path, *, save_every: float, overwrite: bool
    ) -> None:
        """Describe the worker; its first video loads the model.

        Args:
            order_of: the order of a prompt; it is called on the worker's own machine.
            folder: where the videos go.
            save_every: seconds between two states of a video on disk.
            overwrite: make existing videos anew, instead of resuming them.
        """
        self._order_of, self._folder = order_of, folder
        self._save_every, self._overwrite = save_every, overwrite
        self._stop = threading.Event()
        self._kind: Order | None = None

    def make(self, video: VideoEntry) -> Made:
        """Make `video`, or its rest, or nothing if it is complete."""
        try:
            return self._make(video)
        except UserError as error:
            return Made(name=video.name, failure=str(error))

    def _make(self, video: VideoEntry) -> Made:
        output, order = self._folder / f"{video.name}.mp4", self._order(video)
        overwrite = self._overwrite
        if not overwrite:
            described = self._session.describe(order.job, frames=order.frames, scale=order.scale)
            if (frames := _frames_of_complete(output, described)) is not None:
                return Made(name=video.name, frames=frames, complete=True)
            order = _from_state(output, order, described)
            overwrite = order.state is None and _was_begun(output, described)
        ending = make_in(
            self._session, output, order, stop=self._stop, save_every=self._save_every,
            overwrite=overwrite,
        )  # fmt: skip
        outcome = ending.outcome
        return Made(
            name=video.name, frames=outcome.frames, made=outcome.made, seconds=outcome.seconds,
            complete=outcome.complete, failure=ending.failure,
        )  # fmt: skip

    def _order(self, video: VideoEntry) -> Order:
        """The order of `video`; the first one loads the model."""
        if self._kind is None:
            kind = self._order_of(video.prompt)
            self._session, self._kind = load_session(kind.job), kind
        return orders_of([video], self._kind)[video.name]

    def stop(self) -> None:
        """End the video under way after its chunk, with its state on disk, and begin no other."""
        self._stop.set()

    def process(self) -> int:
        """The id of this worker's process."""
        return os.getpid()


def _frames_of_complete(output: Path, described: Mapping[str, Any]) -> int | None:
    """The frames of a complete video that matches `described`; None if there is none.

    Raises:
        UserError: if it is complete, but another video.
    """
    recorded = _recorded(output)
    if not recorded.get("complete"):
        return None
    refuse_another(str(output), DETERMINING, recorded, described)
    return int(recorded["frames_written"])


def _was_begun(output: Path, described: Mapping[str, Any]) -> bool:
    """Whether a worker that died before the first state has left a start of the video `described`.

    Raises:
        UserError: if it was another video.
    """
    recorded = _recorded(output)
    if recorded.get("complete", True):
        return False
    refuse_another(str(output), OF_A_VIDEO, recorded, described)
    return True


def _recorded(output: Path) -> dict[str, Any]:
    """The description in the sidecar of a video; empty if there is no video."""
    sidecar = sidecar_path(output)
    if not is_sidecar(sidecar) or not (output.exists() or state_path(output).exists()):
        return {}
    return {**DEFAULTS, **read_json(sidecar)}


def _from_state(output: Path, order: Order, described: Mapping[str, Any]) -> Order:
    """`order` from the state beside `output`, if there is one.

    Raises:
        UserError: if it is torn, or of another video.
    """
    if not state_path(output).exists():
        return order
    state, recorded = load_state(state_path(output), mend="delete it, or add --overwrite")
    refuse_another(str(output), DETERMINING, {**DEFAULTS, **recorded}, described)
    return replace(order, state=state, described=described)
