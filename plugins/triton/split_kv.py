"""Into how many splits the keys of a query tile are cut, so that the last wave is not mostly idle.

Predicted from the number of tiles, or timed: more splits write and read more, and only a clear gain counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

MERGE_KEYS = 640.0
"""Cost of writing and reading one more split of a query tile, in keys attended to. From traffic: 57 MB
twice at 4.8 TB/s, against 1.55 us for 128 keys of a tile on every processor of an H200 (derived from
published rates, not measured)."""

MOST = 8
"""Splits at most; each of them writes the whole result once more, in float32."""
FEWEST_KEYS = 128
"""Keys of a split at least, two blocks of Hopper's tile: fewer are not worth starting a program for."""
CLEAR_PREDICTION = 0.95
"""The share of one split's predicted time below which more are believed in: at the published shape two splits
are predicted to gain 1 %, and would write and read 115 MB for it."""

TIMED = (1, 2, 3)
"""The numbers of splits that are timed."""
ROUNDS = 5
"""Calls of each number of splits, whose median counts."""
CLEAR_TIME = 0.98
"""The share of the time of fewer splits below which more are taken: less may be noise."""

Timer = Callable[[Callable[[], object]], float]
"""How long a call takes, in any unit."""


class Launch(NamedTuple):
    """The inputs of the choice of splits on one GPU."""

    operator: str
    dtype: str
    rows: int
    batch: int
    keys: int


class TimedSplits:
    """The numbers of splits that were timed on this process's GPU."""

    def __init__(self) -> None:
        self._known: dict[Launch, int] = {}

    def find(self, launch: Launch) -> int | None:
        """The number that was fastest for `launch`; None if it was not timed."""
        return self._known.get(launch)

    def time(self, launch: Launch, run: Callable[[int], object], timer: Timer) -> int:
        """Time `run` with each of `TIMED`, once for each `launch`, and keep the fastest."""
        if launch not in self._known:
            self._known[launch] = fastest_splits(run, timer, candidates(launch.keys))
        return self._known[launch]


def candidates(keys: int) -> tuple[int, ...]:
    """The numbers of splits worth timing for so many keys; one is always among them."""
    return tuple(count for count in TIMED if count == 1 or keys >= count * FEWEST_KEYS)


def fastest_splits(run: Callable[[int], object], timer: Timer, counts: tuple[int, ...] = TIMED) -> int:
    """The number among `counts` whose `run` is fastest by the median of rounds, in turns forth and back.

    Of several that are within `CLEAR_TIME` of the fastest, the fewest. Each runs once before it is timed,
    to be compiled.
    """
    if len(counts) == 1:
        return counts[0]
    for count in counts:
        run(count)
    samples: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(ROUNDS):
        for count in counts if number % 2 == 0 else reversed(counts):
            samples[count].append(timer(partial(run, count)))
    typical = {count: statistics.median(times) for count, times in samples.items()}
    return min(count for count in counts if typical[count] * CLEAR_TIME <= min(typical.values()))


def best_splits(tiles: int, keys: int, processors: int) -> int:
    """The number of splits predicted to take the least time: waves of programs, plus merging what they write.

    One, unless the prediction is clear.
    """

    def cost(count: int) -> float:
        waves = -(-tiles * count // processors) / count
        merging = count * tiles / processors * MERGE_KEYS / keys if count > 1 else 0.0
        return waves + merging

    best = min(range(1, max(1, min(MOST, keys // FEWEST_KEYS)) + 1), key=cost)
    return best if cost(best) < CLEAR_PREDICTION * cost(1) else 1
