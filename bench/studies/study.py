"""The paper's comparisons on a small model, with seeds: which of its claims hold here?

    vmla-bench study mini --runs runs/study -o bench/results/study-mini.json

Layouts: a cache per head against the latent one, through all stages. Widths: the latent's content over
four sizes. Splits: an entry of one size divided differently into content and rotary key. Inits: spectral
against random start from the per-head model. After an interruption the same command continues; every trial
that has ended is in the document.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import torch

from bench.harness.document import Record
from bench.quality.grades import mean_right
from bench.studies.trial import MHA, SharedParts, StudyArm, Trial
from vmla.cli.command import OneLineCommand
from vmla.cli.common_options import ThreadCount
from vmla.cli.options.choices import Choice
from vmla.cli.progress import ProgressLine
from vmla.train.recipes.from_scratch import pretraining_recipe
from vmla.weights.conversion.spectral import Init

STUDIED = ("layouts", "widths", "splits", "inits")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The comparisons at one size of model."""

    recipe: str
    widths: tuple[int, int, int, int]
    """Widths of the content that are compared; the recipe's own is among them."""
    splits: tuple[tuple[int, int], ...]
    """Pairs of content and rotary widths with one sum; the recipe's own is among them."""
    seeds: int
    prompts: int
    seconds: tuple[int, ...]
    """Seconds of the video at which it is graded."""

    def arms(self) -> list[StudyArm]:
        """All arms of the study; that of the recipe's own model answers three questions."""
        model = pretraining_recipe(self.recipe).model
        own = model.kv_lora_rank, model.qk_rope_head_dim
        found = [
            StudyArm(name="mla", questions=("layouts", "widths", "splits"), distilled=True, closely=True),
            MHA,
        ]
        for width in self.widths:
            if width != own[0]:
                sizes = {"kv_lora_rank": width}
                found.append(StudyArm(name=f"content-{width}", questions=("widths",), sizes=sizes))
        for content, rotary in self.splits:
            if (content, rotary) != own:
                sizes = {"kv_lora_rank": content, "qk_rope_head_dim": rotary}
                found.append(StudyArm(name=f"split-{content}-{rotary}", questions=("splits",), sizes=sizes))
        inits = get_args(Init)
        return found + [StudyArm(name=name, questions=("inits",), init=name, closely=True) for name in inits]


STUDIES = {
    "debug": Study(
        recipe="debug", widths=(8, 16, 24, 32), splits=((16, 8), (12, 12), (8, 16)),
        seeds=2, prompts=1, seconds=(4,),
    ),
    "mini": Study(
        recipe="mini", widths=(4, 8, 16, 32), splits=((24, 8), (16, 16), (8, 24)),
        seeds=3, prompts=32, seconds=(5, 60, 180),
    ),
}  # fmt: skip


def chosen_arms(study: Study, only: tuple[str, ...]) -> list[StudyArm]:
    """The arms of the questions in `only`; all if it is empty."""
    return [arm for arm in study.arms() if not only or set(only) & set(arm.questions)]


def trials(
    study: Study, arms: list[StudyArm], seeds: int, shared: SharedParts, folder: Path, line: ProgressLine
) -> Iterator[Trial]:
    """All trials seed by seed, so that an interrupted study has compared all arms."""
    for seed in range(seeds):
        for arm in arms:
            yield Trial(
                arm=arm, seed=seed, shared=shared, arms=folder, prompts=study.prompts,
                seconds=study.seconds, line=line,
            )  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds; 0 for one."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "deviation": round(deviation, 4)}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each arm, over its seeds: loss, and the share of prompts that pass, by stage and second."""
    found = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        found.append({
            "arm": name,
            "questions": own[0]["questions"],
            "seeds": len(own),
            "entry_width": own[0]["entry_width"],
            "loss": spread([row["loss"] for row in own]),
            "grades": _spreads([row["grades"] for row in own]),
            "along": _spreads([row["along"] for row in own]),
        })  # fmt: skip
    return found


def _spreads(trees: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Mean and deviation of each question, and of their mean, by stage (or step) and second."""
    return {
        key: {second: _spread_of([tree[key][second] for tree in trees]) for second in trees[0][key]}
        for key in trees[0]
    }


def _spread_of(shares: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """`mean` is that over the questions, without `all`: a small model rarely has everything right."""
    found = {name: spread([one[name] for one in shares]) for name in shares[0]}
    return {**found, "mean": spread([mean_right(one) for one in shares])}


@click.command("study", cls=OneLineCommand)
@click.argument("name", type=Choice(STUDIES, kind="study"))
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/study"),
              show_default=True,
              help="Folder that keeps everything trained; run again to resume.")  # fmt: skip
@click.option("--only", type=Choice(STUDIED), multiple=True,
              help="Comparison to make; repeat for several (default: all).")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds (default: the study's own).")
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/study.json).")  # fmt: skip
def main(
    name: str,
    runs: Path,
    only: tuple[str, ...],
    seeds: int | None,
    threads: int | None,
    output: Path | None,
) -> None:
    """Compare layouts, widths, splits and initialisations of a small model, with seeds."""
    if threads is not None:
        torch.set_num_threads(threads)
    study, rows = STUDIES[name], list[dict[str, Any]]()
    record = Record("study", output)
    with ProgressLine(sys.stderr) as line:
        shared = SharedParts.made(pretraining_recipe(study.recipe), runs / name / "world", line.show)
        arms = chosen_arms(study, only)
        for trial in trials(study, arms, seeds or study.seeds, shared, runs / name, line):
            rows.append(trial.result())
            record.save(subject=name, prompts=study.prompts, rows=rows, compared=compared(rows))
    record.finish(losses={one["arm"]: one["loss"] for one in compared(rows)})


if __name__ == "__main__":
    main()
