"""Finds the weakest part of a sprite model: its codec, its first chunk, or how it continues from there.

    python -m bench.quality.diagnose sprites --prompts 48

Scenes of held-out combinations are graded three times: their true videos through the codec, under noise on
the latents; videos that begin with true chunks and are then the model's own; and the model's own from the
start. Each is split by the number of objects and by motion. Before that, first chunks alone are graded, of
these scenes and of as many that training has seen: a model that knows its clips by heart does better there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click
import numpy as np
import torch
from torch import Tensor

from bench.harness.document import Record
from bench.harness.whole_numbers import WholeNumbers
from bench.quality.grades import Graded, grade_windows, grouped, shares, show
from bench.quality.rollouts import BATCH, WINDOW, as_bytes, batches
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.scheduler import Sampler
from vmla.text import TextEncoder
from vmla.train.data.latents import drawn_clip
from vmla.train.objectives.cached_rollout import CachedRollout
from vmla.train.objectives.self_forcing import self_rollout
from vmla.train.publish.record import TRAINING, Trained, read_checked
from vmla.transformer import VideoMLA
from vmla.vae import Codec, frames_in
from vmla.weights.checkpoint import SHIPPED, Checkpoint, open_checkpoint
from vmla.world.caption import describe
from vmla.world.grader.grade import QUESTIONS
from vmla.world.render import render
from vmla.world.scene import Scene, draw_scene
from vmla.world.worlds import World

NOISE = 0.2
"""Deviation of the noise on the codec's latents, which have deviation 1: about a denoiser's own error."""
SECOND_OF_GRADE = 5
"""Where in the video the one graded window ends."""
STILL = tuple(question for question in QUESTIONS if question != "motion")
"""The questions that a single chunk answers."""


def held_out_scenes(count: int, *, seed: int, world: World) -> list[Scene]:
    """Scenes that training never rendered, as many of one object as of two."""
    rng = np.random.default_rng([seed, 8])  # other scenes than `held_out_prompts` draws from the same seed
    return [draw_scene(rng, held_out=True, objects=1 + i % 2, world=world) for i in range(count)]


@torch.inference_mode()
def through_codec(
    codec: Codec, scenes: Sequence[Scene], world: World, *, noise: float = NOISE
) -> list[Graded]:
    """Grades of true videos that were encoded, made noisy and decoded."""
    generator = torch.Generator().manual_seed(0)
    graded = []
    for scene in scenes:
        latents = codec.encode(render(scene, WINDOW)[None])
        frames = codec.decode(latents + noise * torch.randn(latents.shape, generator=generator))[0]
        graded += grade_windows([describe(scene)], SECOND_OF_GRADE, as_bytes(frames), world)
    return graded


@dataclass(frozen=True)
class LoadedParts:
    """The loaded parts of a checkpoint that a video needs."""

    model: VideoMLA
    codec: Codec
    text: TextEncoder
    sampler: Sampler
    world: World

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LoadedParts:
        """Load the parts of `checkpoint`.

        Raises:
            UserError: if the model was not trained on a world of moving shapes.
        """
        world = checkpoint.world()
        if world is None:
            raise UserError(f"{checkpoint.name} is of no world whose truth is known; give a sprite model")
        return cls(
            checkpoint.transformer(), checkpoint.codec(), checkpoint.text(), checkpoint.sampler(), world
        )


def trained_scenes(checkpoint: Checkpoint, count: int) -> list[Scene]:
    """Scenes of its training, as many of one object as of two; none if its record names no clips."""
    path, world = checkpoint.folder / TRAINING, checkpoint.world()
    settings = read_checked(path, Trained)["settings"].get("latents") if path.exists() else None
    if settings is None or world is None:
        return []
    chosen: dict[int, list[Scene]] = {1: [], 2: []}
    for number in range(settings["clips"]):
        scene, *_ = drawn_clip(settings["seed"], number, world)
        chosen[len(scene.sprites)].append(scene)
        if min(map(len, chosen.values())) > count // 2:
            break
    return [scene for pair in zip(*chosen.values(), strict=False) for scene in pair][:count]


@torch.inference_mode()
def first_chunks(opened: LoadedParts, scenes: Sequence[Scene], *, seed: int) -> list[Graded]:
    """Grades of the model's own first chunk of each scene, in which no motion can be told."""
    texts = [describe(scene) for scene in scenes]
    frames = opened.codec.decode(_rolled(opened, texts, chunks=1, seed=seed, given=None))[0]
    return grade_windows(texts, 0, as_bytes(frames), opened.world)


def still_figures(graded: list[Graded]) -> dict[str, object]:
    """Shares that pass each question but that for motion, and all of these, by number of objects."""
    groups = {"all": graded, **{name: part for name, part in grouped(graded).items() if "object" in name}}
    return {name: _still_shares(part) for name, part in groups.items()}


def _still_shares(graded: list[Graded]) -> dict[str, float]:
    answers = [{name: getattr(one.grade, name) for name in STILL} for one in graded]
    passed = [{**answer, "all": all(answer.values())} for answer in answers]
    return {name: round(mean(one[name] for one in passed), 4) for name in (*STILL, "all")}


@torch.inference_mode()
def after_true_chunks(opened: LoadedParts, scenes: Sequence[Scene], *, true: int, seed: int) -> list[Graded]:
    """Grades of five seconds whose first `true` chunks are those of the scene itself."""
    codec, texts = opened.codec, [describe(scene) for scene in scenes]
    spec = CacheSpec.of(opened.model.config)
    begun = frames_in(spec.chunks.start(true), codec) if true else 0
    given = [codec.encode(render(scene, begun)[None]) for scene in scenes] if true else []
    latent = -(-SECOND_OF_GRADE * FRAMES_PER_SECOND // codec.temporal_ratio)
    chunks = spec.chunks.count(latent)
    latents = _rolled(opened, texts, chunks=chunks, seed=seed, given=torch.cat(given) if given else None)
    video = codec.decode(latents)[0][:, : SECOND_OF_GRADE * FRAMES_PER_SECOND][:, -WINDOW:]
    return grade_windows(texts, SECOND_OF_GRADE, as_bytes(video), opened.world)


@torch.inference_mode()
def _rolled(
    opened: LoadedParts, texts: Sequence[str], *, chunks: int, seed: int, given: Tensor | None
) -> Tensor:
    """Latents [B, z, F, h, w] of `chunks` chunks, the first of which may be `given`."""
    model, sampler, config = opened.model, opened.sampler, opened.model.config
    negative = opened.text([sampler.negative_prompt] * len(texts)) if sampler.guided else None
    return self_rollout(
        CachedRollout(model, CacheSpec.of(config), model.encode_text(opened.text(texts))), sampler,
        (config.in_channels, config.sample_height, config.sample_width), chunks=chunks, exit_step=None,
        seeds=range(seed, seed + len(texts)), given=given,
        negative_text_kv=None if negative is None else model.encode_text(negative),
    )  # fmt: skip


def figures(graded: list[Graded]) -> dict[str, object]:
    """Shares that pass each question, of all and by group."""
    groups = {"all": graded, **grouped(graded)}
    return {name: shares(part)[str(SECOND_OF_GRADE)] for name, part in groups.items()}


@click.command(cls=OneLineCommand)
@click.argument("checkpoint", default=SHIPPED)
@click.option("--prompts", "count", type=click.IntRange(2), default=48, show_default=True,
              help="Number of held-out scenes.")  # fmt: skip
@click.option(
    "--true",
    "chunks",
    type=WholeNumbers("chunks", "1,3"),
    default="1,3",
    show_default=True,
    help="Numbers of true chunks to begin with, comma-separated.",
)
@click.option("--seed", default=2000, show_default=True, help="Seed of the scenes and of the first video.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/diagnose.json).")  # fmt: skip
def main(checkpoint: str, count: int, chunks: tuple[int, ...], seed: int, output: Path | None) -> None:
    """Grade a sprite model's codec, first chunk and continuation separately."""
    named = open_checkpoint(checkpoint)
    opened, record = LoadedParts.of(named), Record("diagnose", output)
    scenes = held_out_scenes(count, seed=seed, world=opened.world)
    record.save(checkpoint=named.name, world=opened.world.name, prompts=count, seed=seed)
    record.save(first_chunks=_grade_first_chunks(named, opened, scenes, seed))
    found = {"true videos through the codec": through_codec(opened.codec, scenes, opened.world)}
    show(found["true videos through the codec"])
    with ProgressLine(sys.stderr) as line:
        for true in (0, *chunks):
            name = f"{true} true chunks, then own"
            found[name] = []
            for batch in batches(scenes, BATCH, seed=seed):
                line.show(f"diagnose: {name}, {batch.first} of {count}")
                found[name] += after_true_chunks(opened, batch.items, true=true, seed=batch.seed)
            say(name)
            show(found[name])
            record.save(stages={key: figures(graded) for key, graded in found.items()})
    record.finish(**{key: figures(graded)["all"] for key, graded in found.items()})


def _grade_first_chunks(
    checkpoint: Checkpoint, opened: LoadedParts, held_out: list[Scene], seed: int
) -> dict[str, object]:
    """`still_figures` of prompts that training has seen, where they are known, and of others."""
    found: dict[str, object] = {}
    groups = {"prompts of training": trained_scenes(checkpoint, len(held_out)), "held-out prompts": held_out}
    for name, scenes in groups.items():
        parts = batches(scenes, BATCH, seed=seed)
        graded = [g for part in parts for g in first_chunks(opened, part.items, seed=part.seed)]
        if graded:
            found[name] = still_figures(graded)
            say(f"first chunks, {name}: {found[name]}")
    return found


if __name__ == "__main__":
    main()
