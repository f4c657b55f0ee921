"""The content of a sprite video: a background and one or two moving objects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from vmla.world.apart import can_stay_apart, stay_apart
from vmla.world.paths import Course, Path, times
from vmla.world.worlds import FIRST, World

COLOURS = {
    "red": (222, 45, 45),
    "orange": (246, 138, 30),
    "yellow": (245, 222, 50),
    "green": (50, 190, 75),
    "cyan": (60, 205, 225),
    "blue": (55, 90, 235),
    "purple": (165, 70, 215),
    "white": (245, 245, 245),
}
BACKGROUNDS = {
    "black": (14, 14, 18),
    "navy": (22, 28, 84),
    "maroon": (92, 22, 40),
    "forest": (18, 74, 44),
    "gray": (112, 114, 120),
    "beige": (190, 172, 140),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = ("bouncing", "drifting", "orbiting", "spinning", "resting")
SIZES = ("small", "large")

ROUND = frozenset({"circle", "ring"})
"""Shapes whose spinning cannot be seen, so that no caption asks for it."""

FOLDS = {"square": 4, "cross": 4, "triangle": 3, "star": 5, "circle": 1, "ring": 1}
"""A shape looks the same after a turn by 2 pi / folds (a round one after any)."""


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One object. Its motion is drawn from `seed`: the same values give the same path."""

    shape: str
    colour: str
    size: str
    motion: str
    seed: int = 0
    world: World = FIRST

    @property
    def radius(self) -> float:
        """The circumradius of the object, in pixels."""
        return self.world.radii[self.size]

    @property
    def course(self) -> Course:
        """The path that the object follows."""
        return Course(motion=self.motion, radius=self.radius, seed=self.seed, world=self.world)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and the sprites before it, the first one at the back."""

    background: str
    sprites: tuple[Sprite, ...]

    @property
    def held_out(self) -> bool:
        """Whether any (shape, colour, background) of it is kept from training."""
        return any(is_held_out(s.shape, s.colour, self.background) for s in self.sprites)


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """One combination in eight is never rendered in training; a hash picks which."""
    digest = hashlib.blake2b(f"{shape}/{colour}/{background}".encode(), digest_size=2).digest()
    return int.from_bytes(digest, "big") % 8 == 0


def draw_scene(
    rng: np.random.Generator, *, held_out: bool = False, objects: int | None = None, world: World = FIRST
) -> Scene:
    """A random scene, from training's combinations or (`held_out`) only from the others.

    `objects` fixes their number; left out, three scenes in ten of the first world have two, and five in ten
    of the second, where two stay apart.
    """
    count = objects or (2 if rng.random() < (0.5 if world.few_paths else 0.3) else 1)
    while True:
        background = str(rng.choice(list(BACKGROUNDS)))
        colours = rng.choice(list(COLOURS), size=count, replace=False)
        sprites = tuple(_draw_sprite(rng, str(colour), world) for colour in colours)
        flags = [is_held_out(s.shape, s.colour, background) for s in sprites]
        if not (all(flags) if held_out else not any(flags)):
            continue
        if not world.few_paths or count == 1:
            return Scene(background=background, sprites=sprites)
        if can_stay_apart(world, *((s.motion, s.size) for s in sprites)):
            return Scene(background=background, sprites=_draw_apart(rng, *sprites))


def _draw_sprite(rng: np.random.Generator, colour: str, world: World) -> Sprite:
    shape = str(rng.choice(SHAPES))
    motions = [m for m in MOTIONS if not (m == "spinning" and shape in ROUND)]
    return Sprite(
        shape=shape,
        colour=colour,
        size=str(rng.choice(SIZES)),
        motion=str(rng.choice(motions)),
        seed=int(rng.integers(2**31)),
        world=world,
    )


def _draw_apart(rng: np.random.Generator, one: Sprite, other: Sprite) -> tuple[Sprite, Sprite]:
    """Redraw the paths of the two objects until the objects never touch."""
    while not stay_apart(one.course, other.course):
        one, other = (replace(sprite, seed=int(rng.integers(2**31))) for sprite in (one, other))
    return one, other


def trace_path(sprite: Sprite, frames: int, start: int = 0) -> Path:
    """The path of `sprite` over `frames` frames from frame `start` on."""
    return sprite.course.at(times(frames, start))
