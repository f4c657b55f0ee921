"""Work over a pool of Ray actors, each of which loads its model once for all pieces that it is given."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

from plugins.errors import UserError

LIVES = 3
"""Workers that may die on one piece before it is given up: a piece that kills its workers is not the
cluster's fault."""
LOOK_SECONDS = 0.2
"""Seconds between two checks whether the work should end."""
Piece = TypeVar("Piece")
Result = TypeVar("Result")


class ActorPool(Generic[Piece, Result]):
    """Actors of one cluster, at most one for each piece; the piece of an actor that dies goes to another.

    A piece is given only to an actor that has started. An actor that replaces one of a machine that is gone
    may wait for room for ever, and no piece waits with it.
    """

    def __init__(
        self, ray: Any, new: Callable[[], Any], lost: Callable[[Piece, str], Result], *, workers: int
    ) -> None:
        """Describe the pool; `run` starts the actors.

        Args:
            ray: the library, connected.
            new: begins an actor with two methods, `make(piece)` and `stop()`, which are called at once.
            lost: makes the result of a piece that is given up, from the piece and the reason.
            workers: how many there are at most; fewer where the cluster has no room for them.
        """
        self._ray, self._new, self._lost, self._workers = ray, new, lost, workers
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, int]] = {}
        self._spare: list[Any] = []
        self._stillborn = 0
        """Actors in a row that died before they had started."""
        self.deaths = Counter[int]()
        """For each piece's number, how many actors died while they made it."""

    def run(self, pieces: Sequence[Piece], stop: threading.Event) -> Generator[Result, None, None]:
        """Make `pieces`, in the order in which they are done; ends early once `stop` is set.

        Raises:
            UserError: if an actor fails, and not only dies, or none starts.
        """
        waiting = deque(range(len(pieces)))
        try:
            while (waiting and not stop.is_set()) or self._running:
                if stop.is_set():
                    for worker, _ in self._running.values():
                        worker.stop.remote()
                else:
                    self._hand_out(waiting, pieces)
                done, _ = self._ray.wait([*self._running, *self._starting], timeout=LOOK_SECONDS)
                for one in done:
                    if one in self._starting:
                        self._started(one)
                    else:
                        yield from self._end(one, waiting, pieces)
        finally:
            busy = [worker for worker, _ in self._running.values()]
            for worker in [*self._spare, *busy, *self._starting.values()]:
                self._ray.kill(worker)

    def _hand_out(self, waiting: deque[int], pieces: Sequence[Piece]) -> None:
        """Give pieces to the actors that are free, and start more for those that are left."""
        while waiting and self._spare:
            worker, number = self._spare.pop(), waiting.popleft()
            self._running[worker.make.remote(pieces[number])] = (worker, number)
        wanted = min(len(waiting), self._workers - len(self._running))
        for _ in range(wanted - len(self._starting)):
            worker = self._new()
            self._starting[worker.__ray_ready__.remote()] = worker

    def _started(self, one: Any) -> None:
        worker = self._starting.pop(one)
        try:
            self._ray.get(one)
        except self._ray.exceptions.RayActorError as error:
            self._stillborn += 1
            if self._stillborn == LIVES:
                raise UserError(f"workers do not start: {_last_line(error)}") from error
            return
        self._stillborn = 0
        self._spare.append(worker)

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
            raise UserError(f"a worker failed: {_last_line(error)}") from error
        self._spare.append(worker)
        yield result


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
