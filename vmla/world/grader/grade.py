"""Grades a sprite video by formula: its objects against those that its prompt asks for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from vmla.world.caption import ObjectRequest, Reading
from vmla.world.grader.colours import find_background
from vmla.world.grader.detection import Found, find_objects
from vmla.world.grader.motion import name_motion
from vmla.world.scene import ROUND
from vmla.world.worlds import FIRST, SIZE, World

PRESENT = 0.8
"""Share of the frames in which an object must be there to count; what is there for a shorter time, but
longer than `FLASH`, makes the count wrong."""

FLASH = 0.15
"""Share of the frames below which something seen is an accident of decoding."""

SHAPELESS = 0.3
"""Squared error per pixel of a shape's area beyond which it is no shape."""


@dataclass(frozen=True, kw_only=True)
class SeenObject:
    """One object as the grader sees it; what it cannot name is None."""

    colour: str
    shape: str | None
    size: str
    motion: str | None
    presence: float
    """Share of the frames that show it, of those in which nothing hides it."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The objects and background seen in a window of a video."""

    background: str | None
    objects: tuple[SeenObject, ...]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Whether a window shows the prompt, question by question."""

    background: bool
    colour: bool
    shape: bool
    motion: bool
    count: bool

    @property
    def all(self) -> bool:
        """Whether every question is answered with yes."""
        return all(getattr(self, question) for question in QUESTIONS)


QUESTIONS = tuple(field.name for field in fields(Grade))


def look(frames: Tensor, world: World = FIRST) -> Observation:
    """Observe the objects of `world` in frames [F, 3, 64, 64] at 16 frames/s, uint8 or floats in [0, 1].

    Windows of three to five seconds are meant; in less than three a slow drifter is hard to tell from
    one that rests, and in less than `motion.FEWEST` frames nothing has a motion.

    Raises:
        ValueError: on another shape.
    """
    if frames.ndim != 4 or tuple(frames.shape[1:]) != (3, SIZE, SIZE) or len(frames) == 0:
        raise ValueError(f"frames must be [F, 3, {SIZE}, {SIZE}], not {list(frames.shape)}")
    pixels = frames.detach().cpu().float()
    pixels = pixels / 255 if frames.dtype == torch.uint8 else pixels.clamp(0, 1)
    name, colour = find_background(pixels)
    objects = (_see(found) for found in find_objects(pixels, colour, world))
    return Observation(background=name, objects=tuple(o for o in objects if o.presence > FLASH))


def _see(found: Found) -> SeenObject:
    return SeenObject(
        colour=found.colour,
        shape=found.track.shape if found.error < SHAPELESS else None,
        size=found.track.size,
        motion=name_motion(found.track),
        presence=found.presence,
    )


def grade(seen: Observation, reading: Reading) -> Grade:
    """Compare an observation with a prompt; attributes that the prompt leaves open count as right.

    Each object asked for is matched with one that is seen: by colour, where that fails by shape, then
    by motion. One without a match has the wrong colour, shape and motion.
    """
    pairs = match(seen.objects, reading.requests)
    return Grade(
        background=reading.background in (None, seen.background),
        colour=all(found is not None and found.colour == asked.colour for asked, found in pairs),
        shape=all(found is not None and found.shape == asked.shape for asked, found in pairs),
        motion=all(found is not None and _moves_as(found, asked) for asked, found in pairs),
        count=len(seen.objects) == len(reading.requests) and all(o.presence >= PRESENT for o in seen.objects),
    )


def match(
    objects: tuple[SeenObject, ...], requests: tuple[ObjectRequest, ...]
) -> list[tuple[ObjectRequest, SeenObject | None]]:
    """Each request with its own object, or None when there are too few."""
    pool = [*objects, *[None] * len(requests)]

    def likeness(chosen: tuple[SeenObject | None, ...]) -> int:
        return sum(_likeness(found, asked) for found, asked in zip(chosen, requests, strict=True))

    best = max(permutations(pool, len(requests)), key=likeness)
    return list(zip(requests, best, strict=True))


def _likeness(found: SeenObject | None, asked: ObjectRequest) -> int:
    if found is None:
        return 0
    like = (found.presence >= PRESENT, _moves_as(found, asked), found.shape == asked.shape)
    return 1 + 8 * like[2] + 4 * like[1] + 2 * like[0] + 32 * (found.colour == asked.colour)


def _moves_as(found: SeenObject, asked: ObjectRequest) -> bool:
    # Nobody can see a circle spin.
    hidden = asked.motion == "spinning" and asked.shape in ROUND and found.motion == "resting"
    return found.motion == asked.motion or hidden
