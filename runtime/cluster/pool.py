"""Work over a pool of Ray actors, each of which keeps what it has loaded from one piece to the next."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from plugins.errors import UserError
from runtime.cluster.maker import Made, VideoMaker
from runtime.prompts.videos_file import Video
from runtime.session.replay import Order

LIVES = 3
"""How many workers may die on one piece before it is given up."""
LOOK_SECONDS = 0.2
"""How often to check whether all should end."""
Piece = TypeVar("Piece")
Result = TypeVar("Result")


class ActorPool(Generic[Piece, Result]):
    """Actors of one cluster, at most one for each piece; a piece of one that dies is given to another."""

    def __init__(
        self, ray: Any, new: Callable[[], Any], lost: Callable[[Piece, str], Result], *, workers: int
    ) -> None:
        """Nothing is started yet.

        Args:
            ray: the library, connected.
            new: begins an actor with two methods, `make(piece)` and `stop()`, which are called at once.
            lost: what is said of a piece that is given up, and why it is.
            workers: how many there are at most; fewer where the cluster has no room for them.
        """
        self._ray, self._new, self._lost, self._workers = ray, new, lost, workers
        self._running: dict[Any, tuple[Any, int]] = {}
        self._spare: list[Any] = []
        self.deaths = Counter[int]()
        """By the number of a piece, the actors that died while they made it."""

    def run(self, pieces: Sequence[Piece], stop: threading.Event) -> Generator[Result, None, None]:
        """Make `pieces`, in the order in which they are done; ends early once `stop` is set.

        Raises:
            UserError: if an actor fails, and not only dies.
        """
        waiting = deque(range(len(pieces)))
        try:
            while (waiting and not stop.is_set()) or self._running:
                while waiting and not stop.is_set() and len(self._running) < self._workers:
                    number = waiting.popleft()
                    worker = self._spare.pop() if self._spare else self._new()
                    self._running[worker.make.remote(pieces[number])] = (worker, number)
                if stop.is_set():
                    for worker, _ in self._running.values():
                        worker.stop.remote()
                done, _ = self._ray.wait(list(self._running), timeout=LOOK_SECONDS)
                for one in done:
                    yield from self._end(one, waiting, pieces)
        finally:
            for worker in [*self._spare, *(worker for worker, _ in self._running.values())]:
                self._ray.kill(worker)

    def _end(self, one: Any, waiting: deque[int], pieces: Sequence[Piece]) -> Iterator[Result]:
        worker, number = self._running.pop(one)
        try:
            result: Result = self._ray.get(one)
        except self._ray.exceptions.RayActorError as error:
            self.deaths[number] += 1
            if self.deaths[number] < LIVES:
                waiting.appendleft(number)
            else:
                yield self._lost(pieces[number], f"{LIVES} workers died of it: {type(error).__name__}")
            return
        except self._ray.exceptions.RayTaskError as error:
            raise UserError(f"a worker failed: {str(error).strip().splitlines()[-1]}") from error
        self._spare.append(worker)
        yield result


def video_pool(
    ray: Any, order_of: Callable[[str], Order], folder: Path, *, workers: int, cpus: int, gpus: float,
    save_every: float, overwrite: bool,
) -> ActorPool[Video, Made]:  # fmt: skip
    """Actors that make videos in `folder`, which all machines of the cluster must see; see `VideoMaker`.

    Each of the `workers` counts as so many `cpus` and `gpus`.
    """
    kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(VideoMaker)
    new = partial(kind.remote, order_of, folder, save_every=save_every, overwrite=overwrite)
    return ActorPool(ray, new, lambda video, why: Made(name=video.name, failure=why), workers=workers)
