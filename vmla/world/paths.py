"""Where objects go: the free paths of the first world, the few closed ones of the second."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vmla.config import FRAMES_PER_SECOND
from vmla.world.worlds import SIZE, World

PLACES = 3
"""Places across and down where an object of the second world rests or spins."""

OFFSETS = (1 / 8, 2 / 8, 3 / 8, 5 / 8, 6 / 8, 7 / 8)
"""By how much of a period the vertical motion of a closed path lags the horizontal one: the rhombus through
the middles of the walls and two slanted rectangles, each in both directions."""


@dataclass(frozen=True)
class Path:
    """Where an object is: `x`, `y` of its centre in pixels and its `angle` in radians, each [frames]."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray


def bounds(radius: float) -> tuple[float, float]:
    """Between which the centre of an object of `radius` stays, along either axis."""
    return radius + 1, SIZE - radius - 1


@dataclass(frozen=True, kw_only=True)
class Course:
    """All that decides where an object is at any time."""

    motion: str
    radius: float
    seed: int
    world: World

    def at(self, time: np.ndarray) -> Path:
        """The path at the seconds `time` [frames]."""
        rng = np.random.default_rng(self.seed)
        return self._closed(rng, time) if self.world.few_paths else self._free(rng, time)

    @property
    def period(self) -> float:
        """Seconds after which the centre is back, in a world of few paths; 0 if it never leaves."""
        if self.motion == "orbiting":
            return 360 / self.world.orbit[0]
        if self.motion not in ("bouncing", "drifting"):
            return 0.0
        speed = (self.world.bounce if self.motion == "bouncing" else self.world.drift)[0]
        low, high = bounds(self.radius)
        # Diagonal: along each axis it is slower by the square root of two.
        return 2 * (high - low) / (speed / math.sqrt(2))

    def _free(self, rng: np.random.Generator, time: np.ndarray) -> Path:
        """All values from a continuum."""
        low, high = bounds(self.radius)
        home = rng.uniform(low, high, size=2)
        still = np.zeros_like(time)
        if self.motion in ("bouncing", "drifting"):
            speed = rng.uniform(*(self.world.bounce if self.motion == "bouncing" else self.world.drift))
            # Away from the axes, so that a path crosses the whole frame and never repeats one line.
            heading = rng.integers(4) * math.pi / 2 + rng.uniform(0.35, math.pi / 2 - 0.35)
            x = _reflect(home[0] + speed * math.cos(heading) * time, low, high)
            y = _reflect(home[1] + speed * math.sin(heading) * time, low, high)
            return Path(x, y, still)
        if self.motion == "orbiting":
            turn = rng.choice([-1, 1]) * 2 * math.pi / rng.uniform(*_periods(self.world.orbit))
            return _orbit(self.radius, rng.uniform(0, 2 * math.pi) + turn * time)
        x, y = np.full_like(time, home[0]), np.full_like(time, home[1])
        if self.motion == "spinning":
            turn = rng.choice([-1, 1]) * 2 * math.pi / rng.uniform(*_periods(self.world.spin))
            return Path(x, y, rng.uniform(0, 2 * math.pi) + turn * time)
        return Path(x, y, still)

    def _closed(self, rng: np.random.Generator, time: np.ndarray) -> Path:
        """One of a few closed curves, or one of a few places; only the phase is from a continuum."""
        low, high = bounds(self.radius)
        phase, direction = rng.uniform(), int(rng.choice([-1, 1]))
        if self.motion in ("bouncing", "drifting"):
            across = phase + time / self.period
            down = across + rng.choice(OFFSETS)
            x, y = (_reflect(low + 2 * (high - low) * cycles, low, high) for cycles in (across, down))
            return Path(x, y, np.zeros_like(time))
        if self.motion == "orbiting":
            return _orbit(self.radius, 2 * math.pi * (phase + direction * time / self.period))
        place = low + (high - low) * rng.integers(PLACES, size=2) / (PLACES - 1)
        x, y = (np.full_like(time, value) for value in place)
        turns = phase + direction * time * self.world.spin[0] / 360 if self.motion == "spinning" else 0 * time
        return Path(x, y, 2 * math.pi * turns)


def times(frames: int, start: int = 0) -> np.ndarray:
    """Seconds of `frames` frames from frame `start` on."""
    return (start + np.arange(frames)) / FRAMES_PER_SECOND


def _periods(rates: tuple[float, float]) -> tuple[float, float]:
    """Seconds of a whole turn at the greatest and the least of two rates in degrees a second."""
    return 360 / rates[1], 360 / rates[0]


def _orbit(radius: float, angle: np.ndarray) -> Path:
    """A circle around the frame's centre, as wide as fits."""
    reach = SIZE / 2 - bounds(radius)[0]
    return Path(SIZE / 2 + reach * np.cos(angle), SIZE / 2 + reach * np.sin(angle), np.zeros_like(angle))


def _reflect(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fold an unbounded position into [low, high] as a ball between two walls."""
    span = high - low
    return low + span - np.abs((position - low) % (2 * span) - span)
