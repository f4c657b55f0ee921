"""Grades of a sprite model over time: is it still what the prompt asked for after three minutes?

    python -m bench.quality.grades --checkpoint sprites -o grades.json
    python -m bench.quality.grades --engine engines/sprites-onnx-fp8 -o grades-fp8.json

Held-out prompts are rolled out in batches, by the eager model in float32 or by a compiled engine in its own
precision, from the same noise; at each mark a window of four seconds is graded by formula
(`vmla.world.grader.grade`). Prints a table and one JSON line; what was graded is kept when it is interrupted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import click
import numpy as np
import torch
from torch import Tensor

from bench.harness.document import Record
from bench.harness.whole_numbers import WholeNumbers
from export.engine.manifest import Manifest
from runtime.engines.base import EagerEngine, Engine
from runtime.engines.compiled import open_engine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import rollout
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import SHIPPED, Checkpoint, open_checkpoint
from vmla.world.caption import describe, read
from vmla.world.grader.grade import QUESTIONS, Grade, grade, look
from vmla.world.scene import draw_scene
from vmla.world.worlds import FIRST, World

WINDOW = 64
"""Frames that are graded before each mark."""


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


class Windows:
    """Keeps of a stream of frames only the last `WINDOW` before each mark."""

    def __init__(self, seconds: tuple[int, ...]) -> None:
        self._ends = {second: second * FRAMES_PER_SECOND for second in seconds}
        self._parts: dict[int, list[Tensor]] = {second: [] for second in seconds}
        self._seen = 0

    def add(self, frames: Tensor) -> None:
        """Frames [B, n, 3, H, W] in [0, 1]."""
        for second, parts in self._parts.items():
            edges = self._ends[second] - WINDOW, self._ends[second]
            first, last = (min(max(edge - self._seen, 0), frames.shape[1]) for edge in edges)
            parts.append(as_bytes(frames[:, first:last]))
        self._seen += frames.shape[1]

    def pop(self) -> Iterator[tuple[int, Tensor]]:
        """Each mark that was passed since the last call, and its window [B, WINDOW, 3, H, W] uint8."""
        for second in sorted(second for second in self._parts if self._ends[second] <= self._seen):
            yield second, torch.cat(self._parts.pop(second), dim=1)


def as_bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as a file would hold them: uint8."""
    return (frames * 255).round().to(torch.uint8)


def seen_rollouts(
    engine: Engine,
    checkpoint: Checkpoint,
    prompts: list[str],
    seconds: tuple[int, ...],
    *,
    batch: int,
    seed: int,
    line: ProgressLine,
) -> Iterator[tuple[int, Tensor]]:
    """Roll out all `prompts` at once, the video of number i with seed `seed` + i: each mark and its windows.

    `batch` videos are made, as many as an engine was built for; those past the prompts are of the last one.
    Windows are [batch, WINDOW, 3, H, W] uint8.
    """
    decoder = CodecDecoder(checkpoint.codec(), engine.device)
    chunks = engine.cache_spec.chunks.count(-(-max(seconds) * FRAMES_PER_SECOND // 4))
    seeds = [seed + number for number in range(batch)]
    asked = FixedPrompts(*prompts, *prompts[-1:] * (batch - len(prompts)))
    windows = Windows(seconds)
    stream = rollout(engine, decoder, asked, checkpoint.sampler(), seeds=seeds, chunks=chunks)
    for chunk in stream:
        windows.add(chunk.frames)
        line.show(f"grades: chunk {chunk.number + 1} of {chunks}, {len(prompts)} videos")
        yield from windows.pop()


def grade_windows(prompts: list[str], second: int, frames: Tensor, world: World = FIRST) -> list[Graded]:
    """What the windows [B, WINDOW, 3, H, W] uint8 of the videos of `prompts` are worth."""
    return [
        Graded(prompt=prompt, second=second, grade=grade(look(video, world), read(prompt)))
        for prompt, video in zip(prompts, frames, strict=False)
    ]


def open_denoiser(checkpoint: Checkpoint, folder: Path | None) -> tuple[Engine, int | None]:
    """The engine in `folder` and its batch, or the eager model in float32, which takes any."""
    if folder is None:
        device = torch.device("cpu")
        text, model = checkpoint.text(), checkpoint.transformer()
        return EagerEngine(model, text, device=device, dtype=torch.float32), None
    batch = Manifest.read(folder).batch
    return open_engine(folder, checkpoint, batch=batch), batch


class Grading:
    """Batches of prompts, rolled out and graded by one engine."""

    def __init__(
        self, checkpoint: str, folder: Path | None, prompts: list[str], marks: tuple[int, ...], *,
        batch: int, seed: int,
    ) -> None:  # fmt: skip
        """Load the engine; see the options of the command."""
        self._opened = open_checkpoint(checkpoint)
        self._prompts, self._marks, self._seed = prompts, marks, seed
        self._world = self._opened.world() or FIRST
        self._engine, self._fixed = open_denoiser(self._opened, folder)
        self.batch = self._fixed or batch

    def marks_of(self, first: int, line: ProgressLine) -> Iterator[list[Graded]]:
        """The grades of the batch that begins with the prompt number `first`, mark by mark."""
        part = self._prompts[first : first + self.batch]
        seen = seen_rollouts(
            self._engine, self._opened, part, self._marks, batch=self._fixed or len(part),
            seed=self._seed + first, line=line,
        )  # fmt: skip
        for second, frames in seen:
            yield grade_windows(part, second, frames, self._world)

    def all(self) -> Iterator[list[Graded]]:
        """All grades so far, after each mark of each batch."""
        graded: list[Graded] = []
        with ProgressLine(sys.stderr) as line:
            for first in range(0, len(self._prompts), self.batch):
                for more in self.marks_of(first, line):
                    graded += more
                    yield graded

    def close(self) -> None:
        """Unload the engine."""
        self._engine.close()


def what_is(folder: Path | None) -> str:
    """The backend and the precision of the engine in `folder`, in words."""
    made = None if folder is None else Manifest.read(folder)
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
    """Over the questions, of the shares of prompts that pass each."""
    return mean(passed[name] for name in QUESTIONS)


def figures(graded: list[Graded]) -> dict[str, object]:
    """What the document holds of the prompts graded so far."""
    failures = Counter((one.prompt, one.second) for one in graded if not one.grade.all)
    counts = Counter(str(one.second) for one in graded)
    groups = {name: {"graded": len(part), "grades": shares(part)} for name, part in grouped(graded).items()}
    return {
        "grades": shares(graded), "graded": dict(counts), "groups": groups,
        "failed": [list(key) for key in failures],
    }  # fmt: skip


def grouped(graded: list[Graded]) -> dict[str, list[Graded]]:
    """Shares by number of objects and, for one object, by its motion."""
    groups: dict[str, list[Graded]] = {}
    for one in graded:
        requests = read(one.prompt).requests
        names = ["one object", requests[0].motion] if len(requests) == 1 else ["two objects"]
        for name in names:
            groups.setdefault(name, []).append(one)
    return dict(sorted(groups.items()))


def show(graded: list[Graded]) -> None:
    """For a person to read: all prompts, then by number of objects and by motion."""
    for name, part in {"all prompts": graded, **grouped(graded)}.items():
        prompts = len({one.prompt for one in part})
        say(f"{name} ({prompts})")
        say("seconds  " + "  ".join(f"{question:>10}" for question in (*QUESTIONS, "all")))
        for mark, row in shares(part).items():
            say(f"{mark:>7}  " + "  ".join(f"{share:>10.1%}" for share in row.values()))


def _graded_by_ray(
    begin: Callable[[], Grading], count: int, batch: int, folder: Path | None
) -> Iterator[list[Graded]]:
    from bench.quality.graders import graded_by_ray

    made = None if folder is None else Manifest.read(folder)
    gpus = 1.0 if made is not None and made.host.device == "cuda" else 0.0
    return graded_by_ray(begin, batch=batch if made is None else made.batch, count=count, gpus=gpus)


@click.command(cls=OneLineCommand)
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
@click.option("--batch", default=24, show_default=True,
              help="Videos rolled out at once; an engine makes those that it was built for.")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Results file to write (JSON)."
)
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
    named = Manifest.read(folder).checkpoint if folder is not None and checkpoint is None else checkpoint
    opened = open_checkpoint(named or SHIPPED)
    world, graded, record = opened.world() or FIRST, list[Graded](), Record("grades", output)
    prompts = held_out_prompts(count, seed=seed, world=world, objects=objects)
    whole = None if folder is None else folder.absolute()
    begin = partial(Grading, str(opened.folder.absolute()), whole, prompts, marks, batch=batch, seed=seed)
    with ExitStack() as stack:
        grading = None if ray else stack.enter_context(closing(begin()))
        record.save(
            checkpoint=opened.name, world=world.name, engine=what_is(folder), prompts=count, seed=seed,
            sampler=vars(opened.sampler()),
        )  # fmt: skip
        for graded in _graded_by_ray(begin, count, batch, whole) if grading is None else grading.all():
            record.save(**figures(graded))
    show(graded)
    record.finish(**record.document["grades"])


if __name__ == "__main__":
    main()
