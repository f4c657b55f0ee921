"""Models of one world side by side: grades and drift over three minutes, speed, and size of the cache.

    vmla-bench layouts --model latent=sprites --model "per head=runs/per-head" -o layouts.json

All make the videos of the same held-out prompts from the same noise, in float32, and all are timed in turns
in one process: a round through the models forwards, then one backwards, so that a steady drift of the
machine's speed affects all alike. After an interruption the same command continues with the models that its
document does not have yet. With `--prompts 0` models are only timed, even those of different worlds.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from torch import Tensor

from bench.harness.document import Record
from bench.harness.subject import filling
from bench.harness.whole_numbers import WholeNumbers
from bench.quality.drift import MEASURES, drift, measures
from bench.quality.grades import grade_windows, held_out_prompts, shares
from bench.quality.rollouts import VideoBatch, open_denoiser, seen_rollouts
from bench.report.sections.quality import layouts_section
from plugins.documents.json_file import read_json
from plugins.errors import UserError
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.rollout import Rollout
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.weights.checkpoint import Checkpoint, open_checkpoint
from vmla.weights.formats.files import hash_weights
from vmla.world.worlds import FIRST

MARKS = (5, 60, 180)
"""Seconds into the video at which it is graded."""
EVERY = 12
"""Seconds between two points of a curve."""
ROUNDS, CHUNKS = 6, 10
"""Rounds of timing through all models, and chunks of each model in a round."""
NOTHING: dict[str, Any] = {"grades": {}, "curve": [], "drift": {}}
"""The results of a model that makes no videos."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the models that are compared."""

    name: str
    checkpoint: Checkpoint

    @classmethod
    def of(cls, text: str) -> Model:
        """`NAME=FOLDER`, or the name of a shipped model.

        Raises:
            UserError: if there is no such checkpoint.
        """
        name, given, folder = text.partition("=")
        return cls(name=name, checkpoint=open_checkpoint(folder if given else name))

    def described(self) -> dict[str, Any]:
        """The model's part of the results document."""
        config, sampler = self.checkpoint.model_config(), self.checkpoint.sampler()
        return {
            "model": self.name, "layout": config.layout, "sampler": sampler.kind, "steps": sampler.steps,
            "cached_numbers": config.entry_width,
            "weights": hash_weights(self.checkpoint.weights_path("transformer")),
        }  # fmt: skip


def watch(
    model: Model, prompts: list[str], marks: tuple[int, ...], seed: int, line: ProgressLine
) -> dict[str, Any]:  # fmt: skip
    """Grades at the marks, and a curve over time of all videos together."""
    engine, _ = open_denoiser(model.checkpoint, None)
    world = model.checkpoint.world() or FIRST
    seconds = tuple(sorted({*marks, *range(EVERY, max(marks) + 1, EVERY)}))
    graded, points = [], []
    batch = VideoBatch(0, prompts, seed)
    for second, frames in seen_rollouts(engine, model.checkpoint, batch, seconds, line=line):
        found = grade_windows(prompts, second, frames, world)
        if second in marks:
            graded += found
        if second % EVERY == 0:
            points.append({"second": second, "right": shares(found)[str(second)], **_seen(frames)})
    return {"grades": shares(graded), "curve": points, "drift": drift(points)}


def _seen(frames: Tensor) -> dict[str, float]:
    """Means over videos of the measures of one window of each."""
    each = [measures(video.float() / 255) for video in frames]
    return {name: round(statistics.mean(one[name] for one in each), 5) for name in MEASURES}


def speeds(models: list[Model], rounds: int, line: ProgressLine) -> dict[str, dict[str, Any]]:
    """Frames per second of one video, denoised and committed but not decoded, of each model, in turns."""
    videos = {model.name: _filled(model) for model in models}
    taken: dict[str, list[float]] = {model.name: [] for model in models}
    for number in range(rounds):
        line.show(f"layouts: round {number + 1} of {rounds}")
        for model in models if number % 2 == 0 else reversed(models):
            taken[model.name].append(_seconds_of(videos[model.name], CHUNKS) / CHUNKS)
    found = {}
    for model in models:
        codec, config = model.checkpoint.codec(weights=False), model.checkpoint.model_config()
        each = [config.chunk * codec.temporal_ratio / seconds for seconds in taken[model.name]]
        found[model.name] = {"frames_per_second": round(statistics.median(each), 2),
                             "rounds": [round(one, 2) for one in each]}  # fmt: skip
    return found


def _filled(model: Model) -> Rollout:
    """A video whose window is full."""
    engine, _ = open_denoiser(model.checkpoint, None)
    video = Rollout(engine, FixedPrompts("a red star"), model.checkpoint.sampler(), seeds=[0])
    _seconds_of(video, filling(engine.config) + 1)
    return video


def _seconds_of(video: Rollout, chunks: int) -> float:
    began = perf_counter()
    for _ in range(chunks):
        video.denoise()
        video.update_cache()
    return perf_counter() - began


def _kept(path: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of models that an interrupted run of the same command has graded already."""
    if not path.is_file():
        return []
    before = read_json(path)
    same = not before.get("complete") and all(before.get(key) == value for key, value in asked.items())
    return list(before.get("models", [])) if same else []


@click.command("layouts", cls=OneLineCommand)
@click.option(
    "--model", "named", multiple=True, required=True, help="A model as NAME=FOLDER; repeat for several."
)
@click.option("--prompts", "count", default=48, show_default=True, type=click.IntRange(min=0),
              help="Number of held-out prompts; with 0, models are only timed.")  # fmt: skip
@click.option(
    "--seconds",
    "marks",
    type=WholeNumbers(),
    default=",".join(map(str, MARKS)),
    show_default=True,
    help="Seconds at which to grade, comma-separated.",
)
@click.option(
    "--seed", default=1000, show_default=True, help="Seed of the first video; each later one has the next."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/layouts.json).")  # fmt: skip
def main(named: tuple[str, ...], count: int, marks: tuple[int, ...], seed: int, output: Path | None) -> None:
    """Compare sprite models: grades, drift, speed, cache."""
    models = [Model.of(text) for text in named]
    if len({model.name for model in models}) < len(models):
        raise UserError("two models of one name; give each --model a name of its own, as NAME=FOLDER")
    worlds = {model.checkpoint.world() or FIRST for model in models}
    if count and len(worlds) > 1:
        raise UserError(
            "these models are of different worlds, whose grades cannot be compared; --prompts 0 times them"
        )
    asked: dict[str, Any] = {"prompts": count, "marks": list(marks), "seed": seed}
    record, prompts = Record("layouts", output), held_out_prompts(count, seed=seed, world=worlds.pop())
    rows = _kept(record.path, asked)
    record.save(**asked, models=rows)
    with ProgressLine(sys.stderr) as line:
        for model in models:
            described = model.described()
            if not any(described.items() <= row.items() for row in rows):
                seen = watch(model, prompts, marks, seed, line) if prompts else NOTHING
                rows.append({**described, **seen})
                record.save(models=rows)
        measured = speeds(models, ROUNDS, line)
    rows = [{**row, **measured[row["model"]]} for row in rows if row["model"] in measured]
    record.save(models=rows)
    for table in layouts_section(record.document).tables:
        say(table.title, *table.markdown())
    record.finish(right={row["model"]: {s: g["all"] for s, g in row["grades"].items()} for row in rows})


if __name__ == "__main__":
    main()
