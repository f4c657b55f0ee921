"""The grammar of captions: scenes to words, and words back to the scene that they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vmla.text import clean_prompt
from vmla.world.apart import can_stay_apart
from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, ROUND, SHAPES, SIZES, Scene
from vmla.world.worlds import FIRST, World

FILLERS = frozenset({"a", "an", "one", "is", "and", "on", "over", "background", "the"})


@dataclass(frozen=True, kw_only=True)
class ObjectRequest:
    """One object that a prompt asks for; what the prompt leaves open is None."""

    shape: str
    colour: str
    motion: str
    size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A prompt's meaning in the language of the sprite world."""

    requests: tuple[ObjectRequest, ...]
    background: str | None
    unknown: tuple[str, ...]
    """Words that the world has no meaning for, in their order."""

    @property
    def understood(self) -> bool:
        """Whether the prompt is wholly within the grammar."""
        return bool(self.requests) and self.background is not None and not self.unknown


def vocabulary() -> tuple[str, ...]:
    """Every word that `describe` can write and `read` knows, in the order of the alphabet."""
    return tuple(sorted({*FILLERS, *SHAPES, *COLOURS, *MOTIONS, *SIZES, *BACKGROUNDS}))


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The caption of `scene`; `rng` varies the wording, without it the plainest form is given."""
    parts = []
    for sprite in scene.sprites:
        size = f"{sprite.size} " if rng is None or rng.random() < 0.6 else ""
        copula = "is " if rng is not None and rng.random() < 0.25 else ""
        parts.append(f"a {size}{sprite.colour} {sprite.shape} {copula}{sprite.motion}")
    preposition = "over" if rng is not None and rng.random() < 0.25 else "on"
    return f"{' and '.join(parts)} {preposition} a {scene.background} background"


def read(prompt: str) -> Reading:
    """Read `prompt`; an object counts once its colour, shape and motion are all named."""
    requests: list[ObjectRequest] = []
    found: dict[str, str] = {}
    background: str | None = None
    unknown: list[str] = []
    kinds = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS, "size": SIZES}
    for word in re.findall(r"[^\s,.;]+", clean_prompt(prompt).lower()):
        kind = next((k for k, values in kinds.items() if word in values), None)
        if kind is not None:
            found[kind] = word
        elif word in BACKGROUNDS:
            background = word
        elif word not in FILLERS:
            unknown.append(word)
        if {"shape", "colour", "motion"} <= found.keys():
            requests.append(ObjectRequest(**found))
            found = {}
    return Reading(requests=tuple(requests), background=background, unknown=tuple(unknown))


def warning_for(prompt: str, world: World = FIRST) -> str | None:
    """One sentence for a prompt that a model of `world` cannot follow, or None if it can."""
    reading = read(prompt)
    spun = any(r.motion == "spinning" and r.shape in ROUND for r in reading.requests)
    if not reading.understood or len(reading.requests) > 2 or spun:
        what = f"does not know {', '.join(map(repr, reading.unknown))}" if reading.unknown else "is small"
        return (
            f"this model {what}; it knows one or two objects such as 'a red star bouncing on a navy "
            f"background': colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; motions "
            f"{', '.join(MOTIONS)}; backgrounds {', '.join(BACKGROUNDS)}; sizes {', '.join(SIZES)}"
        )
    if len(reading.requests) == 2 and world.few_paths and not _fit(reading.requests, world):
        words = [" ".join(filter(None, (r.size, r.motion))) for r in reading.requests]
        return (
            f"this model knows only objects that never touch, and one that is {words[0]} touches one that is "
            f"{words[1]}; let one of them rest or spin, or both be small and move alike"
        )
    return None


def _fit(requests: tuple[ObjectRequest, ...], world: World) -> bool:
    """Whether two objects can stay apart, in any sizes that their prompt leaves open."""
    kinds = [[(r.motion, size) for size in ((r.size,) if r.size else SIZES)] for r in requests]
    return any(can_stay_apart(world, one, other) for one in kinds[0] for other in kinds[1])
