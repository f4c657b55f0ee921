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
    """Actors of one cluster, at most one for each piece; the piece of an actor that dies goes to another."""

    def __init__(
        self, ray: Any, new: Callable[[], Any], lost: Callable[[Piece, str], Result], *, workers: int
    ) -> None:
        """Nothing is started yet.

        Args:
            ray: the library, connected.
            new: begins an actor with two methods, `make(piece)` and `stop()`, which are called at once.
            lost: makes the result of a piece that is given up, from the piece and the reason.
            workers: how many there are at most; fewer where the cluster has no room for them.
        """
        self._ray, self._new, self._lost, self._workers = ray, new, lost, workers
        self._running: dict[Any, tuple[Any, int]] = {}
        self._spare: list[Any] = []
        self.deaths = Counter[int]()
        """For each piece's number, how many actors died while they made it."""

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
