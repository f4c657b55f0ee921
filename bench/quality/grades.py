"""Grades of a sprite model over time: does it still show what the prompt asks for after three minutes?

    python -m bench.quality.grades --checkpoint sprites -o grades.json
    python -m bench.quality.grades --engine engines/sprites-onnx-fp8 -o grades-fp8.json

Held-out prompts are rolled out in batches, by the eager model in float32 or by a compiled engine in its own
precision, from the same noise; at each mark a window of four seconds is graded by formula
(`vmla.world.grader.grade`). Prints a table and one JSON line; an interrupted run leaves the grades so far.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import click
import numpy as np
from torch import Tensor

from bench.harness.document import Record
from bench.harness.whole_numbers import WholeNumbers
from bench.quality.rollouts import BATCH, VideoBatch, batches, open_denoiser, seen_rollouts
from export.engine.manifest import Manifest
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.weights.checkpoint import SHIPPED, open_checkpoint
from vmla.world.caption import describe, read
from vmla.world.grader.grade import QUESTIONS, Grade, grade, look
from vmla.world.scene import draw_scene
from vmla.world.worlds import FIRST, World


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One prompt at one mark."""

    prompt: str
    second: int
    grade: Grade


def held_out_prompts(count: int, *, seed: int, world: World = FIRST, objects: int | None = None) -> list[str]:
    """Captions of combinations that training never rendered; `objects` fixes the number of objects."""
    rng = np.random.default_rng([seed, 7])
    scenes = (draw_scene(rng, held_out=True, objects=objects, world=world) for _ in range(count))
    return [describe(scene) for scene in scenes]


def grade_windows(prompts: Sequence[str], second: int, frames: Tensor, world: World = FIRST) -> list[Graded]:
    """The grades of the windows [B, WINDOW, 3, H, W] uint8 of the videos of `prompts`."""
    return [
        Graded(prompt=prompt, second=second, grade=grade(look(video, world), read(prompt)))
        for prompt, video in zip(prompts, frames, strict=False)
    ]


class Grading:
    """Rolls out and grades batches of prompts with one engine."""

    def __init__(self, checkpoint: str, folder: Path | None, marks: tuple[int, ...]) -> None:
        """Load the engine; see the options of the command."""
        self._opened, self._marks = open_checkpoint(checkpoint), marks
        self._world = self._opened.world() or FIRST
        self._engine, self._fixed = open_denoiser(self._opened, folder)

    def marks_of(self, batch: VideoBatch[str], line: ProgressLine) -> Iterator[list[Graded]]:
        """The grades of `batch`, mark by mark."""
        seen = seen_rollouts(self._engine, self._opened, batch, self._marks, fixed=self._fixed, line=line)
        for second, frames in seen:
            yield grade_windows(batch.items, second, frames, self._world)

    def all(self, parts: Sequence[VideoBatch[str]]) -> Iterator[list[Graded]]:
        """All grades so far, after each mark of each batch."""
        graded: list[Graded] = []
        with ProgressLine(sys.stderr) as line:
            for batch in parts:
                for more in self.marks_of(batch, line):
                    graded += more
                    yield graded

    def close(self) -> None:
        """Unload the engine, so that its memory is free for the next one."""
        self._engine.close()


def what_is(made: Manifest | None) -> str:
    """The backend and the precision of an engine, in words; None is the eager model."""
    return "eager fp32" if made is None else f"{made.backend} {made.precision}"


def shares(graded: list[Graded]) -> dict[str, dict[str, float]]:
    """Per mark, the share of prompts that pass each question and that pass all."""
    table: dict[str, dict[str, float]] = {}
    for second in sorted({one.second for one in graded}):
        at = [one.grade for one in graded if one.second == second]
        passed = {name: sum(getattr(one, name) for one in at) / len(at) for name in (*QUESTIONS, "all")}
        table[str(second)] = {name: round(share, 4) for name, share in passed.items()}
    return table


def mean_right(passed: Mapping[str, float]) -> float:
    """The mean over the questions of the shares of prompts that pass."""
    return mean(passed[name] for name in QUESTIONS)


def figures(graded: list[Graded]) -> dict[str, object]:
    """The figures of the document, from the prompts graded so far."""
    failures = Counter((one.prompt, one.second) for one in graded if not one.grade.all)
    counts = Counter(str(one.second) for one in graded)
    groups = {name: {"graded": len(part), "grades": shares(part)} for name, part in grouped(graded).items()}
    return {
        "grades": shares(graded), "graded": dict(counts), "groups": groups,
        "failed": [list(key) for key in failures],
    }  # fmt: skip


def grouped(graded: list[Graded]) -> dict[str, list[Graded]]:
    """Grades by number of objects and, for one object, by its motion."""
    groups: dict[str, list[Graded]] = {}
    for one in graded:
        requests = read(one.prompt).requests
        names = ["one object", requests[0].motion] if len(requests) == 1 else ["two objects"]
        for name in names:
            groups.setdefault(name, []).append(one)
    return dict(sorted(groups.items()))


def show(graded: list[Graded]) -> None:
    """Print the shares: of all prompts, then by number of objects and by motion."""
    for name, part in {"all prompts": graded, **grouped(graded)}.items():
        prompts = len({one.prompt for one in part})
        say(f"{name} ({prompts})")
        say("seconds  " + "  ".join(f"{question:>10}" for question in (*QUESTIONS, "all")))
        for mark, row in shares(part).items():
            say(f"{mark:>7}  " + "  ".join(f"{share:>10.1%}" for share in row.values()))


def _graded_by_ray(
    begin: Callable[[], Grading], parts: Sequence[VideoBatch[str]], made: Manifest | None
) -> Iterator[list[Graded]]:
    from bench.quality.graders import graded_by_ray

    gpus = 1.0 if made is not None and made.host.device == "cuda" else 0.0
    return graded_by_ray(begin, parts, gpus=gpus)


@click.command(cls=OneLineCommand, groups={
    "What is graded": ("checkpoint", "folder", "count", "objects", "marks", "seed"),
    "How": ("batch", "ray", "output"),
})  # fmt: skip
@click.option("--checkpoint", help="Checkpoint folder (default: the engine's own, else sprites).")
@click.option(
    "--engine", "folder", type=click.Path(path_type=Path), help="Engine folder (default: run eagerly)."
)
@click.option("--prompts", "count", default=48, show_default=True, help="Number of held-out prompts.")
@click.option(
    "--objects", type=click.IntRange(1, 2), help="Number of objects in each prompt (default: drawn)."
)
@click.option(
    "--seconds",
    "marks",
    type=WholeNumbers(),
    default="5,60,180",
    show_default=True,
    help="Seconds at which to grade, comma-separated.",
)
@click.option(
    "--seed", default=1000, show_default=True, help="Seed of the first video; each later one has the next."
)
@click.option("--batch", default=BATCH, show_default=True,
              help="Videos rolled out at once; an engine makes those that it was built for.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/grades.json).")  # fmt: skip
@click.option("--ray", is_flag=True, help="Grade batches over the machines of a Ray cluster.")
def main(
    checkpoint: str | None,
    folder: Path | None,
    count: int,
    objects: int | None,
    marks: tuple[int, ...],
    seed: int,
    batch: int,
    output: Path | None,
    ray: bool,
) -> None:
    """Grade a sprite model over time on held-out prompts."""
    made = None if folder is None else Manifest.read(folder)
    named = made.checkpoint if made is not None and checkpoint is None else checkpoint
    opened = open_checkpoint(named or SHIPPED)
    world, graded, record = opened.world() or FIRST, list[Graded](), Record("grades", output)
    prompts = held_out_prompts(count, seed=seed, world=world, objects=objects)
    parts = batches(prompts, batch if made is None else made.batch, seed=seed)
    whole = None if folder is None else folder.absolute()
    begin = partial(Grading, str(opened.folder.absolute()), whole, marks)
    with ExitStack() as stack:
        grading = None if ray else stack.enter_context(closing(begin()))
        record.save(
            checkpoint=opened.name, world=world.name, engine=what_is(made), prompts=count, seed=seed,
            sampler=opened.sampler().settings(),
        )  # fmt: skip
        for graded in _graded_by_ray(begin, parts, made) if grading is None else grading.all(parts):
            record.save(**figures(graded))
    show(graded)
    record.finish(**record.document["grades"])


if __name__ == "__main__":
    main()
