"""What a sprite video shows: a background and one or two moving objects."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from vmla.config import FRAMES_PER_SECOND

SIZE = 64
"""Width and height of a frame, pixels."""

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
RADII = {"small": 11.0, "large": 15.5}
"""Circumradius in pixels; large enough that a shape covers several tokens of the denoiser."""

ROUND = frozenset({"circle", "ring"})
"""Shapes whose spinning cannot be seen, so that no caption asks for it."""


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One object. Its motion is drawn from `seed`: the same values give the same path."""

    shape: str
    colour: str
    size: str
    motion: str
    seed: int = 0

    @property
    def radius(self) -> float:
        """Circumradius, pixels."""
        return RADII[self.size]


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


def draw_scene(rng: np.random.Generator, *, held_out: bool = False, objects: int | None = None) -> Scene:
    """A random scene, from training's combinations or (`held_out`) only from the others.

    `objects` fixes their number; left out, three scenes in ten have two.
    """
    count = objects or (2 if rng.random() < 0.3 else 1)
    while True:
        background = str(rng.choice(list(BACKGROUNDS)))
        colours = rng.choice(list(COLOURS), size=count, replace=False)
        sprites = tuple(_draw_sprite(rng, str(colour)) for colour in colours)
        flags = [is_held_out(s.shape, s.colour, background) for s in sprites]
        if all(flags) if held_out else not any(flags):
            return Scene(background=background, sprites=sprites)


def _draw_sprite(rng: np.random.Generator, colour: str) -> Sprite:
    shape = str(rng.choice(SHAPES))
    motions = [m for m in MOTIONS if not (m == "spinning" and shape in ROUND)]
    return Sprite(
        shape=shape,
        colour=colour,
        size=str(rng.choice(list(RADII))),
        motion=str(rng.choice(motions)),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Path:
    """Where a sprite is: `x`, `y` of its centre in pixels and its `angle` in radians, each [frames]."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray


def trace_path(sprite: Sprite, frames: int, start: int = 0) -> Path:
    """The path of `sprite` over `frames` frames from frame `start` on."""
    rng = np.random.default_rng(sprite.seed)
    time = (start + np.arange(frames)) / FRAMES_PER_SECOND
    low, high = sprite.radius + 1, SIZE - sprite.radius - 1
    home = rng.uniform(low, high, size=2)
    still = np.zeros(frames)
    if sprite.motion in ("bouncing", "drifting"):
        slowest, fastest = (24.0, 36.0) if sprite.motion == "bouncing" else (6.0, 9.0)
        speed = rng.uniform(slowest, fastest)
        # Away from the axes, so that a path crosses the whole frame and never repeats one line.
        heading = rng.integers(4) * math.pi / 2 + rng.uniform(0.35, math.pi / 2 - 0.35)
        x = _reflect(home[0] + speed * math.cos(heading) * time, low, high)
        y = _reflect(home[1] + speed * math.sin(heading) * time, low, high)
        return Path(x, y, still)
    if sprite.motion == "orbiting":
        turn = rng.choice([-1, 1]) * 2 * math.pi / rng.uniform(3.5, 5.0)
        phase = rng.uniform(0, 2 * math.pi) + turn * time
        reach = SIZE / 2 - low
        return Path(SIZE / 2 + reach * np.cos(phase), SIZE / 2 + reach * np.sin(phase), still)
    x, y = np.full(frames, home[0]), np.full(frames, home[1])
    if sprite.motion == "spinning":
        turn = rng.choice([-1, 1]) * 2 * math.pi / rng.uniform(3.0, 5.0)
        return Path(x, y, rng.uniform(0, 2 * math.pi) + turn * time)
    return Path(x, y, still)


def _reflect(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fold an unbounded position into [low, high] as a ball between two walls."""
    span = high - low
    return low + span - np.abs((position - low) % (2 * span) - span)
