"""Several videos of one kind at once, each to a file of its own: the streams of `runtime.session.scheduler`.

Each is what it would be alone. One that fails ends alone; all can be stopped, and each gone on with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from plugins.errors import UserError
from runtime.planning.plan import Plan
from runtime.prompts.sources import FixedPrompts
from runtime.prompts.videos_file import Video
from runtime.resume.autosave import Keeper
from runtime.resume.sidecar import describe_wish
from runtime.session.destination import clear_output, open_sink
from runtime.session.generate import Outcome, ended_early, record
from runtime.session.pipeline import Film
from runtime.session.replay import Order
from runtime.session.scheduler import Stream, Streams
from runtime.telemetry.events import Several, Telemetry
from runtime.telemetry.metrics import Summary


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one of the videos ended."""

    output: Path
    outcome: Outcome
    failure: str | None
    """Why it ended early, in one line; None if it did not, or was stopped."""


def orders_of(videos: Sequence[Video], kind: Order) -> dict[str, Order]:
    """For each of `videos`, by its name, `kind` with another prompt, and another seed if it has one."""
    return {
        video.name: replace(
            kind,
            job=replace(
                kind.job,
                prompts=FixedPrompts(video.prompt),
                seed=kind.job.seed if video.seed is None else video.seed,
            ),
        )
        for video in videos
    }


def check_room(plan: Plan, videos: int, memory: int) -> None:
    """Refuse more videos than fit.

    Raises:
        UserError: naming how many do, and what would hold all.
    """
    if (fit := plan.streams_in(memory)) < videos:
        raise UserError(
            f"{videos} videos at once take {plan.bytes_for(videos):,} bytes, but {memory:,} hold {fit}; "
            "make fewer at once, or give --memory what there is"
        )


def make_together(
    orders: Mapping[Path, Order], *, memory: int, every: float, stop: threading.Event,
    telemetry: Callable[[Path], Telemetry],
) -> list[Ending]:  # fmt: skip
    """Make all `orders` at once, each to its `.mp4` file.

    Args:
        orders: of one checkpoint, sampler, length and engine, by the file that each goes to.
        memory: bytes for weights and videos together.
        every: seconds between two states of a video on disk.
        stop: ends all after the chunk under way; what is unfinished then has its state on disk.
        telemetry: who is told of the chunks that go to a file.

    Raises:
        UserError: if they do not fit, or the engine cannot be loaded; nothing is written then.
    """
    kind = next(iter(orders.values()))
    check_room(kind.job.plan(), len(orders), memory)
    described, began = _Description(kind), perf_counter()
    with Streams(kind.job, memory=memory) as streams:
        loaded = perf_counter()
        _make_way(list(orders))
        making = [
            _Making(streams, output, order, partial(described.of, order), telemetry(output), every)
            for output, order in orders.items()
        ]
        endings = {}
        while not stop.is_set() and (stream := streams.step()) is not None:
            if stream.over:
                endings[stream.number] = making[stream.number].end(loaded - began, loaded)
    for number, one in enumerate(making):
        if number not in endings:
            endings[number] = one.end(loaded - began, loaded)
    return [endings[number] for number in range(len(making))]


def _make_way(outputs: Sequence[Path]) -> None:
    """Make the folder, and remove what earlier runs left.

    Raises:
        UserError: if it cannot be done.
    """
    try:
        for output in outputs:
            output.parent.mkdir(exist_ok=True)
            clear_output(output)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename}: {error.strerror}") from error


class _Making:
    """One of the videos on its way to its file."""

    def __init__(
        self, streams: Streams, output: Path, order: Order, describe: Callable[[], dict[str, Any]],
        telemetry: Telemetry, every: float,
    ) -> None:  # fmt: skip
        self._output, self._describe, self._summary = output, describe, Summary()
        self._stream: Stream = streams.admit(
            order.job,
            open_sink(output, scale=order.scale),
            frames=order.frames,
            telemetry=Several([self._summary, telemetry]),
            keeper=Keeper(output, describe, every=every),
        )

    def end(self, load_seconds: float, loaded: float) -> Ending:
        """What became of it, once its stream is closed; its sidecar says so."""
        film, failure = self._stream.film, self._stream.failure
        outcome = Outcome.of(
            film, self._summary.figures(), load_seconds=load_seconds, seconds=self._stream.ended - loaded
        )
        if failure is None:
            try:
                record(self._output, self._describe(), outcome)
            except OSError as error:
                failure = error
        return Ending(output=self._output, outcome=outcome, failure=_in_one_line(film, failure))


def _in_one_line(film: Film, failure: Exception | None) -> str | None:
    if failure is None:
        return None
    return str(failure) if isinstance(failure, UserError) else ended_early(film, failure)


class _Description:
    """What determines the frames of each of several videos of one kind; reads the weights once for all."""

    def __init__(self, kind: Order) -> None:
        self._kind, self._lock = kind, threading.Lock()
        self._common: dict[str, Any] | None = None

    def of(self, order: Order) -> dict[str, Any]:
        """What `Order.describe` would say, from any thread."""
        with self._lock:
            self._common = self._common or self._kind.describe()
        return self._common | describe_wish(order.job)
