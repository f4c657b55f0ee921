"""How often the grader of the sprite world is right, on rendered videos whose truth is known.

Each scene is compared with its own prompt, for which every answer should be yes, and, for each question, with
a prompt in which one thing is changed, for which that answer should be no. A question is answered rightly if
both answers are right.

    python -m bench.quality.grader -o grader.json
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from bench.harness.document import Record
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import Choice
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.world.caption import ObjectRequest, Reading, describe, read
from vmla.world.grader.grade import QUESTIONS, Grade, Observation, grade, look, match
from vmla.world.render import render
from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, ROUND, SHAPES, Scene, draw_scene
from vmla.world.worlds import FIRST, WORLDS, World

WINDOWS = (64, 80)
"""Frames of a window, half of the cases each: four seconds, as drift is graded in, and five."""
LATEST_START = 4096
"""The latest frame at which a window begins: motion must be seen in any phase, not only from its start."""
ACCURACIES = {"clean": "accuracy", "degraded": "accuracy_degraded"}
"""Names of the shares of right answers in a document."""
BLUR, NOISE, SHIFT = 0.7, 0.03, 0.02
"""Degradation: sigma of the blur in pixels and of the noise, and the change of each colour channel."""


@dataclass(frozen=True, kw_only=True)
class LabelledWindow:
    """A rendered window and the scene that it shows."""

    scene: Scene
    frames: Tensor
    """[F, 3, 64, 64] float32 in [0, 1]"""


def draw_cases(
    count: int, seed: int, *, degraded: bool, world: World = FIRST, objects: int | None = None
) -> Iterator[LabelledWindow]:
    """`count` windows: every other one from held-out combinations, half of 64 and half of 80 frames."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        scene = draw_scene(rng, held_out=i % 2 == 1, objects=objects, world=world)
        frames = render(scene, WINDOWS[i // 2 % 2], int(rng.integers(LATEST_START)))
        yield LabelledWindow(scene=scene, frames=degrade(frames, generator) if degraded else frames)


def degrade(frames: Tensor, generator: torch.Generator) -> Tensor:
    """`frames` [F, 3, 64, 64] blurred, noisy, and each channel lighter or darker throughout."""
    offset = torch.arange(-3, 4).float()
    line = torch.exp(-offset.square() / (2 * BLUR**2))
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    blurred = conv2d(pad(frames.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate"), kernel)
    shift = SHIFT * (2 * torch.randint(0, 2, (3, 1, 1), generator=generator) - 1)
    noise = NOISE * torch.randn(frames.shape, generator=generator)
    return (blurred.reshape(frames.shape) + shift + noise).clamp(0, 1)


def wrong_reading(reading: Reading, question: str, rng: np.random.Generator) -> Reading:
    """`reading` changed so that its video answers `question` with no."""
    requests = list(reading.requests)
    which = int(rng.integers(len(requests)))
    asked = requests[which]
    others = {
        "background": [b for b in BACKGROUNDS if b != reading.background],
        "colour": [c for c in COLOURS if c not in {r.colour for r in requests}],
        "shape": [s for s in SHAPES if s != asked.shape],
        "motion": [m for m in MOTIONS if not _looks_alike(asked.shape, m, asked.motion)],
        "count": [c for c in COLOURS if c not in {r.colour for r in requests}],
    }
    other = str(rng.choice(others[question]))
    if question == "background":
        return replace(reading, background=other)
    if question == "count" and len(requests) == 1:
        requests.append(ObjectRequest(shape=asked.shape, colour=other, motion=asked.motion))
    elif question == "count":
        del requests[which]
    else:
        requests[which] = replace(asked, **{question: other})
    return replace(reading, requests=tuple(requests))


def _looks_alike(shape: str, one: str, other: str) -> bool:
    return one == other or (shape in ROUND and {one, other} == {"spinning", "resting"})


@dataclass(kw_only=True)
class Tally:
    """Answers so far, for each question; `confusion` counts (truth, seen) pairs."""

    scenes: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    confusion: dict[str, Counter[tuple[str, str]]] = field(
        default_factory=lambda: {question: Counter() for question in QUESTIONS}
    )
    seconds: float = 0.0

    def add(self, seen: Observation, reading: Reading, rng: np.random.Generator) -> Grade:
        """Count one scene; returns the grade for its own prompt."""
        own = grade(seen, reading)
        self.scenes += 1
        for question in QUESTIONS:
            wrong = wrong_reading(reading, question, rng)
            yes, no = getattr(own, question), not getattr(grade(seen, wrong), question)
            self.accepted[question] += yes
            self.rejected[question] += no
            self.right[question] += yes and no
            self.confusion[question].update(_pairs(question, seen, reading))
        return own

    def accuracy(self, question: str) -> float:
        """Share of the scenes in which `question` was answered rightly both ways."""
        return self.right[question] / self.scenes


def _pairs(question: str, seen: Observation, reading: Reading) -> list[tuple[str, str]]:
    if question == "background":
        return [(str(reading.background), str(seen.background))]
    if question == "count":
        return [(str(len(reading.requests)), str(len(seen.objects)))]
    pairs = match(seen.objects, reading.requests)
    return [(getattr(asked, question), str(getattr(found, question, "nothing"))) for asked, found in pairs]


def measure(
    count: int, seed: int, *, degraded: bool, world: World = FIRST, objects: int | None = None,
    progress: ProgressLine | None = None,
) -> Tally:  # fmt: skip
    """Grade the true videos of `count` random scenes."""
    tally, rng = Tally(), np.random.default_rng(seed + 1)
    for case in draw_cases(count, seed, degraded=degraded, world=world, objects=objects):
        began = time.process_time()
        seen = look(case.frames, world)
        tally.seconds += time.process_time() - began
        tally.add(seen, read(describe(case.scene)), rng)
        if progress is not None:
            progress.show(f"{'degraded' if degraded else 'clean'}: {tally.scenes} of {count} scenes")
    return tally


@click.command(cls=OneLineCommand)
@click.option("--scenes", type=click.IntRange(1), default=300, show_default=True, help="Number of scenes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the scenes.")
@click.option("--world", "named", type=Choice(list(WORLDS)), default=FIRST.name, show_default=True,
              help="World that the scenes are of.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/grader.json).")  # fmt: skip
def main(scenes: int, seed: int, named: str, output: Path | None) -> None:
    """Measure the grader of the sprite world on rendered scenes, as they are and degraded."""
    torch.set_num_threads(1)
    record, tallies = Record("grader", output), dict[str, Tally]()
    world = WORLDS[named]
    with ProgressLine(sys.stderr) as progress:
        for name in ("clean", "degraded"):
            degraded = name == "degraded"
            tallies[name] = measure(scenes, seed, degraded=degraded, world=world, progress=progress)
            record.save(scenes=scenes, seed=seed, world=named, **_figures(tallies))
    for name, tally in tallies.items():
        say(f"{name}: {tally.scenes} scenes, {tally.seconds / scenes:.2f} s of one core per window")
        say(f"  {'question':<12}{'right':>8}{'own prompt: yes':>18}{'wrong prompt: no':>18}")
        for q in QUESTIONS:
            shares = (tally.accuracy(q), tally.accepted[q] / scenes, tally.rejected[q] / scenes)
            say(f"  {q:<12}{shares[0]:>8.3f}{shares[1]:>18.3f}{shares[2]:>18.3f}")
    record.finish(**{name: record.document[name] for name in ACCURACIES.values()})


def _figures(tallies: dict[str, Tally]) -> dict[str, object]:
    name, question = min(
        ((n, q) for n in tallies for q in QUESTIONS), key=lambda pair: tallies[pair[0]].accuracy(pair[1])
    )
    accuracies = {ACCURACIES[n]: {q: t.accuracy(q) for q in QUESTIONS} for n, t in tallies.items()}
    counts = sorted(tallies[name].confusion[question].items())
    return {
        **accuracies,
        "degradation": {"blur_px": BLUR, "noise": NOISE, "shift": SHIFT},
        "seconds_per_window": {n: round(t.seconds / t.scenes, 3) for n, t in tallies.items()},
        "worst": {"videos": name, "question": question, "truth_seen_count": [[*p, n] for p, n in counts]},
    }


if __name__ == "__main__":
    main()
