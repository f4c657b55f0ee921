"""Which two objects of the second world fit into one frame: those that never touch."""

from __future__ import annotations

from functools import cache

import numpy as np

from vmla.world.paths import Course
from vmla.world.worlds import World

FARTHEST = 1.1
"""Distance from a shape's centre to its farthest point (a star's or a triangle's), in circumradii."""

GAP = 1.5
"""Pixels that stay free between two objects, of which one is the antialiased ramp of their edges."""

TRIES = 400
"""Pairs of paths that are tried before two motions count as unable to stay apart."""


def stay_apart(one: Course, other: Course) -> bool:
    """Whether two objects never touch, over the whole period that their paths have in common.

    Two that move with different periods come to stand in every relation sooner or later, and any two closed
    paths from wall to wall cross: they do not stay apart.
    """
    periods = {course.period for course in (one, other)} - {0.0}
    if len(periods) > 1:
        return False
    time = np.linspace(0, max(periods, default=0.0), 257)
    a, b = one.at(time), other.at(time)
    return bool(np.hypot(a.x - b.x, a.y - b.y).min() >= FARTHEST * (one.radius + other.radius) + GAP)


@cache
def can_stay_apart(world: World, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether any two objects of these motions and sizes (each a pair of words) stay apart."""
    rng = np.random.default_rng(0)

    def drawn(motion: str, size: str) -> Course:
        seed = int(rng.integers(2**31))
        return Course(motion=motion, radius=world.radii[size], seed=seed, world=world)

    return any(stay_apart(drawn(*one), drawn(*other)) for _ in range(TRIES))
