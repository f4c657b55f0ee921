"""VBench's own protocol: videos of its prompts, five of each, in its layout, then its scores.

    vmla-bench vbench FOLDER --checkpoint sf --dimensions all

    FOLDER/videos/PROMPT-NUMBER.mp4   what VBench reads: links
    FOLDER/prompts.json               the prompt of each
    FOLDER/made/                      the videos with their sidecars
    FOLDER/results/                   what VBench writes

The prompts are those of the installed package, or the lines of a file. Run again, it makes the videos that
are missing. It was tested up to the call of VBench, whose models are not here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from bench.harness.document import Record
from bench.quality.vbench import DIMENSIONS, INSTALL, check_installed, evaluate, file_name, six_metric_mean
from plugins.documents.regular_file import read_text
from plugins.errors import UserError
from runtime.pipeline import VideoPipeline
from runtime.resume.sidecar import sidecar_path
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import ChoiceList
from vmla.cli.options.device import device_option, say_device
from vmla.cli.terminal import say
from vmla.train.loop.state import refuse_other_settings
from vmla.weights.formats.files import read_json, write_json

ALL = (
    *DIMENSIONS, "appearance_style", "color", "human_action", "multiple_objects", "object_class",
    "overall_consistency", "scene", "spatial_relationship", "temporal_flickering", "temporal_style",
)  # fmt: skip
"""The sixteen dimensions; those after the first six are defined for VBench's own prompts alone."""
SETTINGS, PROMPTS = "suite.json", "prompts.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One video of the suite: its prompt, its seed and its name."""

    name: str
    """Name of its file, as VBench expects it."""
    prompt: str
    seed: int


def list_prompts(dimensions: Sequence[str]) -> list[str]:
    """The prompts of VBench's own list that any of `dimensions` is measured on, in its order.

    Raises:
        UserError: without the package, which has the list.
    """
    spec = find_spec("vbench")
    if spec is None or spec.origin is None:
        raise UserError(f"{INSTALL}; or name your own prompts with --prompts FILE")
    entries = json.loads((Path(spec.origin).parent / "VBench_full_info.json").read_text())
    wanted = [entry["prompt_en"] for entry in entries if set(dimensions) & set(entry["dimension"])]
    return list(dict.fromkeys(wanted))


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, without empty ones and repetitions.

    Raises:
        UserError: if there are none.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    if not (found := list(dict.fromkeys(line for line in lines if line))):
        raise UserError(f"{path} holds no prompts; write one on each line")
    return found


def samples_of(prompts: Sequence[str], count: int, seed: int) -> list[Sample]:
    """`count` videos of each prompt, with seeds from `seed` on.

    Raises:
        UserError: if two prompts would have one name.
    """
    names = [file_name(prompt) for prompt in prompts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two prompts begin alike, and VBench's names end after 200 letters: {twice[0]}")
    return [
        Sample(f"{name}-{number}.mp4", prompt, seed + number)
        for name, prompt in zip(names, prompts, strict=True)
        for number in range(count)
    ]


def make_suite(
    pipeline: VideoPipeline, samples: Sequence[Sample], folder: Path, settings: dict[str, Any], say: Say,
    *, steps: int | None,
) -> None:  # fmt: skip
    """Make the missing ones of `samples` in `folder`, and link all where VBench looks.

    Raises:
        UserError: for a folder of videos that were made otherwise.
    """
    made, videos = folder / "made", folder / "videos"
    for each in (made, videos):
        each.mkdir(parents=True, exist_ok=True)
    if (folder / SETTINGS).exists():
        refuse_other_settings(read_json(folder / SETTINGS), settings, folder / SETTINGS)
    write_json(folder / SETTINGS, settings)
    write_json(folder / PROMPTS, {sample.name: sample.prompt for sample in samples})
    for number, sample in enumerate(samples):
        path, link = made / sample.name, videos / sample.name
        if not _is_whole(path):
            say(f"video {number + 1} of {len(samples)}: {sample.name}")
            pipeline.save(
                sample.prompt, path, seconds=settings["seconds"], seed=sample.seed, steps=steps, scale=1,
                overwrite=True, save_every=None,
            )  # fmt: skip
        if not link.is_symlink():
            link.symlink_to(Path("..") / "made" / sample.name)


def _is_whole(path: Path) -> bool:
    sidecar = sidecar_path(path)
    return path.is_file() and sidecar.is_file() and bool(read_json(sidecar).get("complete"))


def chosen_dimensions(named: tuple[str, ...] | None) -> tuple[str, ...]:
    """The dimensions by name, those of `all`, or the paper's six."""
    if named is None:
        return DIMENSIONS
    return ALL if "all" in named else named


@click.command("vbench", cls=OneLineCommand, groups={
    "What is made": ("checkpoint", "prompts", "samples", "seconds", "seed", "steps", "only_videos"),
    "How it is scored": ("dimensions", "long", "device", "output"),
})  # fmt: skip
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--checkpoint", help="Checkpoint folder, shipped model or hub id (default: sprites).")
@click.option("--prompts", type=click.Path(dir_okay=False, path_type=Path),
              help="File with a prompt on each line (default: VBench's own list).")  # fmt: skip
@click.option("--dimensions", type=ChoiceList(["all", *ALL]), help="Dimensions (default: the paper's six).")
@click.option("--samples", type=click.IntRange(min=1), default=5, show_default=True,
              help="Number of videos for each prompt.")  # fmt: skip
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Length of each video.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first video of each prompt.")
@click.option("--steps", type=int, help="Number of denoising steps (default: the checkpoint's own).")
@click.option("--long", is_flag=True, help="Score with VBench-Long, which cuts videos into clips.")
@click.option("--only-videos", is_flag=True, help="Make the videos and score nothing.")
@device_option("Torch device that makes and scores the videos")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/vbench.json).")  # fmt: skip
def main(folder: Path, output: Path | None, **options: Any) -> None:
    """Make videos of VBench's prompts in FOLDER, and score them with VBench's own package."""
    options["device"] = str(say_device(options["device"]))
    dimensions = chosen_dimensions(options["dimensions"])
    own = options["prompts"] is not None
    if own and (needing := [name for name in dimensions if name in ALL[len(DIMENSIONS) :]]):
        raise UserError(f"VBench measures {needing[0]} on its own prompts alone; leave --prompts out")
    if not options["only_videos"]:
        check_installed(long=options["long"])  # checked before the hours that the videos take
    prompts = read_prompts(options["prompts"]) if own else list_prompts(dimensions)
    samples = samples_of(prompts, options["samples"], options["seed"])
    _make(folder, samples, options)
    if options["only_videos"]:
        say(f"{len(samples)} videos in {folder / 'videos'}; without --only-videos they are scored")
        return
    record = Record("vbench", output)
    scores = evaluate(
        folder / "videos", options["device"], long=options["long"], dimensions=dimensions,
        prompts={sample.name: sample.prompt for sample in samples} if own else None,
        standard=0 if own else options["samples"],
    )  # fmt: skip
    record.save(scores=scores, settings=read_json(folder / SETTINGS), prompts=len(prompts))
    for name, score in scores.items():
        say(f"{name:>24}  {score:.4f}")
    mean = {"six_metric_mean": round(six_metric_mean(scores), 4)} if scores.keys() >= set(DIMENSIONS) else {}
    record.finish(videos=len(samples), suite="VBench-Long" if options["long"] else "VBench", **mean)


def _make(folder: Path, samples: Sequence[Sample], options: dict[str, Any]) -> None:
    """Load the model and make the missing videos."""
    device = options["device"]
    with VideoPipeline.from_pretrained(options["checkpoint"], device=device) as pipeline:
        settings = {
            "model_hash": pipeline.checkpoint.model_hash(), "seconds": options["seconds"],
            "seed": options["seed"], "steps": options["steps"],
        }  # fmt: skip
        make_suite(pipeline, samples, folder, settings, say, steps=options["steps"])
