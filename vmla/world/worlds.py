"""The two versions of the world of moving shapes: how large its objects are, and how they move.

Grades of models of different worlds say nothing about each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vmla.cli.options.names import unknown_name

SIZE = 64
"""Width and height of a frame, pixels."""

Range = tuple[float, float]
"""The least and the greatest value."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Ranges of properties that a caption leaves open: sizes in pixels, speeds in pixels or degrees per s."""

    name: str
    """The name that checkpoints record as `trained_on` in their `model_index.json`."""
    small: float
    large: float
    """Circumradius of an object; each shape covers several tokens of the denoiser."""
    drift: Range
    bounce: Range
    spin: Range
    orbit: Range
    few_paths: bool
    """Whether paths are few, closed and never touch: see `vmla.world.paths`. Else each is drawn freely."""

    @property
    def radii(self) -> dict[str, float]:
        """Circumradius by the word for it."""
        return {"small": self.small, "large": self.large}

    # How a grader tells motions apart. Each border lies half-way between neighbours: arithmetically next
    # to rest, geometrically elsewhere.

    @property
    def slowest_drift(self) -> float:
        """Pixels a second below which nothing drifts."""
        return self.drift[0] / 2

    @property
    def drift_or_bounce(self) -> float:
        """Pixels a second between drifting and bouncing."""
        return math.sqrt(self.drift[1] * self.bounce[0])

    @property
    def fastest_bounce(self) -> float:
        """Pixels a second beyond which nothing bounces."""
        return 1.5 * self.bounce[1]

    @property
    def slowest_turn(self) -> float:
        """Degrees a second below which nothing spins or orbits."""
        return min(self.spin[0], self.orbit[0]) / 2

    @property
    def fastest_spin(self) -> float:
        """Degrees a second beyond which nothing spins."""
        return 1.5 * self.spin[1]

    @property
    def fastest_orbit(self) -> float:
        """Degrees a second beyond which nothing orbits."""
        return 1.5 * self.orbit[1]


FIRST = World(
    name="sprites", small=11.0, large=15.5, drift=(6.0, 9.0), bounce=(24.0, 36.0),
    spin=(72.0, 120.0), orbit=(72.0, 360 / 3.5), few_paths=False,
)  # fmt: skip
"""Everything that a caption leaves open is drawn from a continuum, and two objects hide each other."""

# Headings, speeds and phases live in nothing but a model's own history: the fewer values they take, the
# fewer errors add up. Small objects are as large as two that pass each other in a frame of 64 pixels allow.
SECOND = World(
    name="sprites-2", small=9.0, large=14.0, drift=(12.0, 12.0), bounce=(32.0, 32.0),
    spin=(90.0, 90.0), orbit=(90.0, 90.0), few_paths=True,
)  # fmt: skip
"""Properties that a caption leaves open take few values, and two objects never touch."""

WORLDS = {world.name: world for world in (FIRST, SECOND)}


def world_named(name: str) -> World:
    """The world that a checkpoint was trained on.

    Raises:
        UserError: for a name that does not exist.
    """
    if name not in WORLDS:
        raise unknown_name("world", name, WORLDS)
    return WORLDS[name]
