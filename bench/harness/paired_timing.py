"""Times two calls against each other in one process: order A B B A, cold caches, raw samples kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[int], object]
"""Something to be timed; the number says which of the rotating sets of inputs it takes."""

SETS = 3
"""Sets of inputs that take turns, so that no call finds its own inputs in a cache."""
CLAIM = 3.0
"""A ratio must differ from 1 by this many spreads of A against A before anything is claimed."""
FLUSH_BYTES = 512 << 20
"""More than the second-level cache of any GPU."""


class Clock(Protocol):
    """Times one call, in milliseconds."""

    def time(self, call: Callable[[], object]) -> float:
        """How long `call` takes, in milliseconds."""


class WallClock:
    """Times a call on a CPU by wall time."""

    def time(self, call: Callable[[], object]) -> float:
        """How long `call` takes, in milliseconds."""
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)


class WaitingClock:
    """A clock for calls that take longer than their launch: wall time until the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, call: Callable[[], object]) -> float:
        """How long `call` takes, in milliseconds."""
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return 1e3 * (time.perf_counter() - began)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class DeviceClock:
    """A clock for short calls on a GPU: events around the call.

    The second-level cache is overwritten before each call. Otherwise small inputs would be read from there,
    which they are not in a video, where other layers run between two calls.
    """

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def time(self, call: Callable[[], object]) -> float:
        """How long `call` takes, in milliseconds."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


@dataclass(frozen=True)
class Pair:
    """Milliseconds of a baseline and of its rival, sample by sample."""

    baseline: list[float]
    other: list[float]

    @property
    def ratio(self) -> float:
        """Median time of the other over that of the baseline."""
        return statistics.median(self.other) / statistics.median(self.baseline)

    @property
    def best_ratio(self) -> float:
        """The ratio of the two shortest times, which a busy machine disturbs least."""
        return min(self.other) / min(self.baseline)

    @property
    def by_round(self) -> list[float]:
        """The ratio of each round A B B A, from which slow drifts cancel out."""
        pairs = zip(_in_twos(self.baseline), _in_twos(self.other), strict=True)
        return [other / baseline for baseline, other in pairs]

    @property
    def typical(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.by_round)

    @property
    def spread(self) -> float:
        """Half the distance between the 10th and the 90th percentile of the rounds' ratios."""
        low, high = (percentile(self.by_round, percent) for percent in (10, 90))
        return (high - low) / 2

    def differs(self, noise: float) -> bool:
        """Whether the two differ by more than `CLAIM` times `noise`, the spread of A against A."""
        return abs(self.typical - 1) > CLAIM * noise


def _in_twos(samples: list[float]) -> list[float]:
    """The sums of every two neighbours."""
    return [a + b for a, b in zip(samples[::2], samples[1::2], strict=True)]


def percentile(samples: list[float], percent: float) -> float:
    """A percentile of the samples, interpolated between neighbours."""
    ordered = sorted(samples)
    place = percent / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def paired(baseline: Call, other: Call, clock: Clock, *, rounds: int, warm_up: int = 3) -> Pair:
    """Time both in the order A B B A, `rounds` times.

    In that order a steady drift of the machine's speed, as when its clocks fall under load, adds the same to
    both. The `warm_up` calls of each come first and are not timed: they compile, load and allocate.
    """
    for index in range(warm_up):
        baseline(index % SETS)
        other(index % SETS)
    first: list[float] = []
    second: list[float] = []
    index = 0
    for _ in range(rounds):
        for call, samples in ((baseline, first), (other, second), (other, second), (baseline, first)):
            samples.append(clock.time(lambda c=call, t=index: c(t % SETS)))  # type: ignore[misc]
            index += 1
    return Pair(first, second)
