"""The videos of a file over a pool of Ray actors, each with a loaded model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.cluster.maker import Made, VideoMaker
from runtime.prompts.videos_file import Video
from runtime.session.replay import Order

LIVES = 3
"""Workers that one video may take with it before it counts as failed."""
LOOK_SECONDS = 0.2
"""How often it is looked whether all should end."""


class VideoPool:
    """Workers of one cluster, at most one for each video."""

    def __init__(
        self, ray: Any, order_of: Callable[[str], Order], folder: Path, *, workers: int, cpus: int,
        gpus: float, save_every: float, overwrite: bool,
    ) -> None:  # fmt: skip
        """Nothing is started yet.

        Args:
            ray: the library, connected.
            order_of: the order of a prompt; see `VideoMaker`.
            folder: where the videos go; all machines of the cluster must see it.
            workers: how many there are at most; fewer where the cluster has no room for them.
            cpus: processors that each of them is given.
            gpus: GPUs that each of them is given.
            save_every: seconds between two states of a video on disk.
            overwrite: make anew what is there.
        """
        self._ray, self._workers = ray, workers
        # Two calls at once: a video, and the request to stop it.
        kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(VideoMaker)
        self._new: Callable[[], Any] = partial(
            kind.remote, order_of, folder, save_every=save_every, overwrite=overwrite
        )
        self._running: dict[Any, tuple[Any, Video]] = {}
        self._spare: list[Any] = []
        self._deaths: dict[str, int] = {}

    def run(self, videos: Sequence[Video], stop: threading.Event) -> Generator[Made, None, None]:
        """Make `videos`, in the order in which they are done; ends early once `stop` is set.

        A worker that dies is replaced, and its video gone on with from its last state.
        """
        waiting = deque(videos)
        try:
            while (waiting and not stop.is_set()) or self._running:
                while waiting and not stop.is_set() and len(self._running) < self._workers:
                    self._begin(waiting.popleft())
                if stop.is_set():
                    self._stop()
                done, _ = self._ray.wait(list(self._running), timeout=LOOK_SECONDS)
                for one in done:
                    yield from self._end(one, waiting)
        finally:
            for worker in [*self._spare, *(worker for worker, _ in self._running.values())]:
                self._ray.kill(worker)

    def _begin(self, video: Video) -> None:
        worker = self._spare.pop() if self._spare else self._new()
        self._running[worker.make.remote(video)] = (worker, video)

    def _stop(self) -> None:
        for worker, _ in self._running.values():
            worker.stop.remote()

    def _end(self, one: Any, waiting: deque[Video]) -> Iterator[Made]:
        worker, video = self._running.pop(one)
        try:
            made: Made = self._ray.get(one)
        except self._ray.exceptions.RayActorError as error:
            self._deaths[video.name] = self._deaths.get(video.name, 0) + 1
            if self._deaths[video.name] < LIVES:
                waiting.appendleft(video)
            else:
                yield Made(name=video.name, failure=f"{LIVES} workers died of it: {type(error).__name__}")
            return
        except self._ray.exceptions.RayTaskError as error:
            raise UserError(f"a worker failed: {str(error).strip().splitlines()[-1]}") from error
        self._spare.append(worker)
        yield made
