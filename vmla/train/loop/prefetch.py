"""The next batch is drawn on a thread of its own while a step computes on the present one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """Batches that depend on their number alone. Within a `with`, the next one is drawn beforehand.

    The next number is guessed from the distance of the last two; a wrong guess costs a wasted draw.
    """

    def __init__(self, draw: Callable[[int], Batch]) -> None:
        """`draw` is called from the thread, for one number at a time."""
        self._draw = draw
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Batch]] | None = None
        self._last: int | None = None

    def __enter__(self) -> Prefetcher[Batch]:
        """Start the thread that draws batches ahead."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread after its current draw."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._next = self._last = None

    def take(self, number: int) -> Batch:
        """The batch of `number`; whatever went wrong in drawing it is raised here."""
        if self._pool is None:
            return self._draw(number)
        expected, drawing = self._next or (None, None)
        if drawing is None or expected != number:
            drawing = self._pool.submit(self._draw, number)
        batch = drawing.result()
        stride = 1 if self._last is None else number - self._last
        self._last = number
        self._next = (number + stride, self._pool.submit(self._draw, number + stride))
        return batch
