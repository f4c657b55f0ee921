"""From a track of centres and angles to the name of its motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vmla.config import FRAMES_PER_SECOND
from vmla.world.paths import bounds
from vmla.world.scene import FOLDS, ROUND
from vmla.world.worlds import FIRST, SIZE, World

STILL = 1.5
"""RMS distance in pixels from its mean place below which an object rests. The slowest drifter, seen for 3 s
with a reflection half-way, has 2.6 along each axis that it moves on at full speed."""

LARGEST_STEP = 6.0
"""Pixels between neighbouring frames: the fastest bouncer's 2.25 and as much again for error in each of
the two places, less a little; beyond it is a jump."""

UNSTEADY = 0.4
"""Largest `unsteadiness` of a path between walls. Rendered ones, with up to 0.6 px of noise in the centre,
stay below 0.3; objects that jump by a few pixels at random come to 0.6 and more."""

SPARE_LEGS = 4
LEGS_PER_SECOND = {"drifting": 0.5, "bouncing": 2.0}
"""Upper bounds on straight legs. A large object has 31 px between walls: at most 1.6 reflections a second
at a bouncer's 36 px/s, 0.4 at a drifter's 9."""

FEWEST = 12
"""Frames in which an object must be seen before its motion has a name: three quarters of a second."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """The frames in which an object was seen, in order; every array is [n]."""

    shape: str
    size: str
    frame: np.ndarray
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    world: World = FIRST
    """The world, which determines the objects' sizes and the speed of each motion."""

    @property
    def radius(self) -> float:
        """The circumradius of the object, in pixels."""
        return self.world.radii[self.size]

    def guess_place(self, frame: int) -> tuple[float, float]:
        """Where the object was at `frame`, in sight or not: between two sights or on from the last few."""
        near = np.argsort(np.abs(self.frame - frame), kind="stable")[:FEWEST]
        inside = self.frame[0] < frame < self.frame[-1]
        low, high = bounds(self.radius)
        guess = []
        for values in (self.x, self.y):
            if inside or len(near) < 2:
                place = np.interp(frame, self.frame, values)
            else:
                place = np.polyval(np.polyfit(self.frame[near], values[near], 1), frame)
            guess.append(float(np.clip(place, low, high)))
        return guess[0], guess[1]


def name_motion(track: Track) -> str | None:
    """Which of `scene.MOTIONS` the track shows, or None if it shows none of them."""
    if len(track.frame) < FEWEST or jumps(track):
        return None
    if np.hypot(track.x - track.x.mean(), track.y - track.y.mean()).mean() < STILL:
        return _name_turning(track)
    if orbits(track):
        return "orbiting"
    return _name_travel(track)


def jumps(track: Track) -> bool:
    """Whether the object is ever farther from where it was than it could have moved."""
    gap = np.diff(track.frame)
    step = np.hypot(np.diff(track.x), np.diff(track.y))
    return bool((step > LARGEST_STEP + (gap - 1) * track.world.fastest_bounce / FRAMES_PER_SECOND).any())


def _name_turning(track: Track) -> str | None:
    rate, coherence = turning_rate(track)
    if coherence < 0.6:
        return None
    if abs(rate) < track.world.slowest_turn:
        return "resting"
    return "spinning" if abs(rate) < track.world.fastest_spin else None


def turning_rate(track: Track) -> tuple[float, float]:
    """Degrees/s at which the angle turns, and how steadily, in [0, 1].

    The rate is the peak of the periodogram of exp(i folds angle), which needs no unwrapping.
    """
    if track.shape in ROUND:
        return 0.0, 1.0
    folds = FOLDS[track.shape]
    rates = np.arange(-240.0, 240.5, 2.0)
    phase = folds * (track.angle - np.deg2rad(rates)[:, None] * track.frame / FRAMES_PER_SECOND)
    power = np.abs(np.exp(1j * phase).mean(axis=1))
    return float(rates[power.argmax()]), float(power.max())


def orbits(track: Track) -> bool:
    """Whether the object goes steadily around the frame's centre, close to its circle."""
    reach = SIZE / 2 - bounds(track.radius)[0]
    x, y = track.x - SIZE / 2, track.y - SIZE / 2
    phase = np.unwrap(np.arctan2(y, x))
    time = track.frame / FRAMES_PER_SECOND
    rate, first = np.polyfit(time, phase, 1)
    radius = np.hypot(x, y).mean()
    away = np.hypot(x - radius * np.cos(first + rate * time), y - radius * np.sin(first + rate * time))
    turning = track.world.slowest_turn < abs(np.rad2deg(rate)) < track.world.fastest_orbit
    return bool(turning and 0.88 < radius / reach < 1.2 and math.sqrt((away**2).mean()) < 2.0)


def _name_travel(track: Track) -> str | None:
    """Straight legs of one speed, reflected now and then: the speed says which motion it is."""
    legs = split_legs(track)
    seconds = (track.frame[-1] - track.frame[0] + 1) / FRAMES_PER_SECOND
    weight = np.array([leg.frames for leg in legs], dtype=float)
    speed = np.array([math.hypot(*leg.velocity) for leg in legs])
    if unsteadiness(legs) > UNSTEADY:
        return None
    border = track.world.drift_or_bounce
    ranges = {
        "drifting": (track.world.slowest_drift, border),
        "bouncing": (border, track.world.fastest_bounce),
    }
    for motion, (low, high) in ranges.items():
        if weight[(low < speed) & (speed < high)].sum() > 0.75 * weight.sum():
            return motion if len(legs) <= SPARE_LEGS + LEGS_PER_SECOND[motion] * seconds else None
    return None


@dataclass(frozen=True)
class Leg:
    """A straight piece of a path: its number of frames and its velocity along x and y in px/s."""

    frames: int
    velocity: tuple[float, float]


def unsteadiness(legs: list[Leg]) -> float:
    """How much the velocity varies, its signs aside, for a wall only turns a sign: RMS over mean speed."""
    weight = np.array([leg.frames for leg in legs], dtype=float)
    velocity = np.abs([leg.velocity for leg in legs])
    mean = np.average(velocity, axis=0, weights=weight)
    variance = np.average(((velocity - mean) ** 2).sum(axis=1), weights=weight)
    return math.sqrt(variance) / max(float(np.average(np.hypot(*velocity.T), weights=weight)), 1e-9)


def split_legs(track: Track, shortest: int = 3) -> list[Leg]:
    """The path as straight legs of steady speed: least squares with a price for each leg.

    Exact, by dynamic programming over the last leg's start. The price is the Bayesian one, half of
    log n for each of a leg's five numbers, in units of the noise that the track itself shows.
    """
    n = len(track.frame)
    time = track.frame / FRAMES_PER_SECOND
    cost, slopes = _line_errors(time, track.x, track.y, shortest)
    price = 5 * math.log(n) * noise_variance(track)
    total, start = np.zeros(n + 1), np.zeros(n + 1, dtype=int)
    for end in range(1, n + 1):
        choices = total[:end] + cost[:end, end - 1]
        start[end] = choices.argmin()
        total[end] = choices.min() + price
    legs, end = [], n
    while end > 0:
        vx, vy = slopes[:, start[end], end - 1]
        legs.append(Leg(int(end - start[end]), (float(vx), float(vy))))
        end = start[end]
    return legs[::-1]


def noise_variance(track: Track) -> float:
    """Variance of the centre along one axis, from third differences, which no straight line has."""
    thirds = np.concatenate([np.diff(track.x, 3), np.diff(track.y, 3)])
    # A third difference of white noise has 20 times its variance. A codec also lets a centre wander slowly,
    # by a few tenths of a pixel, which third differences hardly show: hence the floor.
    return max(float(np.median(np.abs(thirds)) / 0.6745) ** 2 / 20, 0.3**2)


def _line_errors(
    time: np.ndarray, x: np.ndarray, y: np.ndarray, shortest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared error [n, n] and slopes [2, n, n] of the lines through points i .. j; inf if too few."""
    n = len(time)

    def sums(values: np.ndarray) -> np.ndarray:
        running = np.concatenate([[0.0], np.cumsum(values)])
        between: np.ndarray = running[None, 1:] - running[:-1, None]
        return between

    count = np.arange(1, n + 1)[None] - np.arange(n)[:, None]
    few = count < shortest
    divisor = np.where(few, 1, count)
    spread = np.where(few, 1.0, sums(time**2) - sums(time) ** 2 / divisor)
    error, slopes = np.zeros((n, n)), np.zeros((2, n, n))
    for axis, values in enumerate((x, y)):
        shared = sums(time * values) - sums(time) * sums(values) / divisor
        slopes[axis] = shared / spread
        error += sums(values**2) - sums(values) ** 2 / divisor - shared**2 / spread
    return np.where(few, np.inf, error), slopes
