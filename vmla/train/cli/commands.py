"""`vmla-train`: run a recipe, pack its result into a checkpoint folder; convert published weights."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from vmla.cli.command import OneLineErrors
from vmla.cli.common_options import ThreadCount
from vmla.cli.options.choices import Choice
from vmla.cli.options.device import device_option
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say
from vmla.train.cli.weights_commands import codec, convert, inspect, push
from vmla.train.recipes import FROM_CHECKPOINT, FROM_SCRATCH
from vmla.train.stages import STAGES

FOLDER = click.Path(file_okay=False, path_type=Path)
VARIED = ("layout", "kv_lora_rank", "qk_rope_head_dim", "seed")
"""The options of `varied`."""
WATCHED = ("samples", "log")
"""The options of `watched`."""


@click.group(cls=OneLineErrors)
def main() -> None:
    """Convert Wan models to VideoMLA and train them; train small ones from nothing."""


def varied(command: Any) -> Any:
    """Options that change a recipe, for studies."""
    for option in (
        click.option("--layout", type=Choice(["mla", "mha"]),
                     help="Attention layout (default: the recipe's)."),
        click.option("--kv-lora-rank", "--content-width", "kv_lora_rank", type=click.IntRange(min=1),
                     help="Width of the shared latent."),
        click.option("--qk-rope-head-dim", "--rotary-width", "qk_rope_head_dim", type=click.IntRange(min=2),
                     help="Width of the shared rotary key."),
        click.option("--seed", type=int, help="Seed of the denoiser's training."),
    ):  # fmt: skip
        command = option(command)
    return command


def watched(command: Any) -> Any:
    """Options that show the progress of training without affecting it."""
    for option in (
        click.option("--samples", type=click.IntRange(min=1), metavar="EVERY",
                     help="Show clips of the averaged weights each EVERY steps, in the folder's samples/."),
        click.option("--log", type=Choice(["tensorboard", "wandb"]),
                     help="Service that gets all numbers too, beside the JSON lines."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command(groups={
    "What is trained": ("output", "until", "stop_after", "device", "threads"),
    "What differs from the recipe": VARIED,
    "What is shown": WATCHED,
})  # fmt: skip
@click.argument("recipe", type=Choice(FROM_SCRATCH))
@varied
@watched
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the run; run again to resume.")
@click.option("--until", type=Choice(STAGES), default=STAGES[-1], help="The last stage to train.")
@click.option("--stop-after", type=click.IntRange(min=1), help="Stop after this many more steps of a stage.")
@device_option("Torch device that trains")
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@click.pass_context
def run(
    context: click.Context,
    /,
    recipe: str,
    output: Path,
    until: str,
    stop_after: int | None,
    device: str,
    threads: int | None,
    samples: int | None,
    log: str | None,
    **changes: Any,
) -> None:
    """Train the small model of a recipe, stage after stage; Ctrl-C stops it, the same command resumes."""
    import torch

    from vmla.cli.options.device import say_device
    from vmla.cli.progress import ProgressLine
    from vmla.train.monitoring.dashboard import dashboard
    from vmla.train.recipes.from_scratch import pretraining_recipe
    from vmla.train.run import TrainingRun

    if threads is not None:
        torch.set_num_threads(threads)
    chosen, place = pretraining_recipe(recipe, **changes), say_device(device)
    with dashboard(log, output) as watchers, ProgressLine(sys.stderr) as line:
        finished = TrainingRun(
            chosen, output, line.show, stop_after=stop_after, watchers=watchers, samples=samples,
            stop=context.ensure_object(Stop), device=place,
        ).until(until)  # fmt: skip
    if finished and until == STAGES[-1]:
        given = ((f"--{key.replace('_', '-')}", str(value)) for key, value in changes.items() if value)
        words = shlex.join([recipe, str(output), *(word for pair in given for word in pair)])
        say(f"trained; make a checkpoint of it: vmla-train pack {words} -o FOLDER")


@main.command()
def recipes() -> None:
    """List the recipes, with their sizes."""
    from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES

    for recipe in PRETRAINING_RECIPES.values():
        model = recipe.model
        steps = recipe.steps()
        learned = steps["denoiser"] + steps.get("refine", 0)
        say(f"{recipe.name}: width {model.inner_dim}, {model.num_layers} layers, {learned} denoiser steps")


@main.command()
@click.argument("recipe", type=Choice(FROM_SCRATCH))
@click.argument("folder", type=FOLDER)
@varied
@click.option("-o", "--output", type=FOLDER, required=True, help="Checkpoint folder to write.")
def pack(recipe: str, folder: Path, output: Path, **changes: Any) -> None:
    """Write the finished run of a recipe in FOLDER as a checkpoint folder."""
    from vmla.train.publish.pack import pack_run
    from vmla.train.recipes.from_scratch import pretraining_recipe

    pack_run(pretraining_recipe(recipe, **changes), folder, output, say)
    place = shlex.quote(str(output))
    say(f"make a video with it: vmla-run --checkpoint {place} --prompt PROMPT -o video.mp4")


@main.command("pack-stages")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option("--start", required=True, help="Checkpoint that the first stage trained.")
@click.option("-o", "--output", type=FOLDER, required=True, help="Checkpoint folder to write.")
def pack_stages(folders: tuple[Path, ...], start: str, output: Path) -> None:
    """Write what the last of the finished stages in FOLDERS made as a checkpoint folder, in float16."""
    from vmla.train.publish.pack import pack_stages as pack_all

    pack_all(start, folders, output, say)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--grades", type=click.Path(path_type=Path), default=Path("bench/results/grades-sprites.json"),
              show_default=True, help="Results file of bench.quality.grades.")  # fmt: skip
@click.option("--grader", type=click.Path(path_type=Path), default=Path("bench/results/grader.json"),
              show_default=True, help="Results file of bench.quality.grader.")  # fmt: skip
def card(folder: Path, grades: Path, grader: Path) -> None:
    """Write the model card of the packed checkpoint in FOLDER from measured results."""
    from vmla.train.publish.model_card import write_card

    write_card(folder, grades, grader)


@main.command(groups={
    "What is trained": ("recipe", "start", "data", "output", "teacher", "critic", "accumulate", "stop_after"),
    "Where": ("device", "threads"),
    "What is shown": WATCHED,
    "Planning": ("dry_run", "gpus"),
})  # fmt: skip
@click.argument("name", type=Choice(["forcing", "consistency", "distribution", "long"], kind="stage"))
@click.option("--recipe", type=Choice(FROM_CHECKPOINT), required=True, help="Named recipe.")
@click.option("--from", "start", help="Checkpoint folder to train.")
@click.option(
    "--data", type=FOLDER, help="Folder of clips: what vmla-train encode wrote, or the latents of a run."
)
@click.option("-o", "--output", type=FOLDER, help="Folder of the stage; run again to resume.")
@click.option("--teacher", help="Checkpoint folder of the teacher (default: the one that is trained).")
@click.option("--critic", help="Checkpoint folder that the critic starts from (default: the teacher).")
@watched
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of micro-batches of each process.",
)
@device_option("Torch device that trains")
@click.option("--stop-after", type=click.IntRange(min=1), help="Stop after this many more steps.")
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@click.option("--dry-run", is_flag=True, help="Print memory by part for --gpus; train nothing.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Number of GPUs to plan for, with --dry-run.",
)
@click.pass_context
def stage(context: click.Context, /, **options: Any) -> None:
    """Train one stage from a checkpoint to a checkpoint, alone or under torchrun."""
    from vmla.cli.progress import ProgressLine
    from vmla.train.cli.stage_options import start_stage

    with ProgressLine(sys.stderr) as line:
        start_stage(options, line.show, say, context.ensure_object(Stop))


@main.command(groups={
    "What is made": ("output", "checkpoint", "frames", "negative", "shard"), "Where": ("device", "ray"),
})  # fmt: skip
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the shards; run again to resume.")
@click.option("--with", "checkpoint", required=True, help="Checkpoint folder with codec and text encoder.")
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    default=21,
    show_default=True,
    help="Length of each clip in latent frames.",
)
@click.option(
    "--negative", help="Negative prompt that guidance steers away from (default: the preset's, if any)."
)
@click.option(
    "--shard", type=click.IntRange(min=1), default=64, show_default=True, help="Number of clips in one file."
)
@device_option("Torch device that encodes")
@click.option("--ray", is_flag=True, help="Encode over the machines of a Ray cluster, which see all folders.")
def encode(source: Path, output: Path, checkpoint: str, **options: Any) -> None:
    """Encode SOURCE once: a folder of videos with .txt captions, or a file with a prompt on each line."""
    from vmla.cli.options.device import say_device
    from vmla.train.data.encode import encode as encode_all

    place = str(say_device(options.pop("device")))
    encode_all(source, checkpoint, output, lambda line: say(line, err=True), device=place, **options)


@main.command(groups={
    "What is made": ("output", "checkpoint", "clips"), "Where": ("device", "threads", "workers", "ray"),
})  # fmt: skip
@click.argument("recipe", type=Choice(FROM_SCRATCH))
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the clips; run again to resume.")
@click.option("--with", "checkpoint", required=True, help="Checkpoint folder with codec and text encoder.")
@click.option("--clips", type=click.IntRange(1, 1_000_000), help="Number of clips (default: the recipe's).")
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True,
              help="Processes that render; with 0 the command itself does.")  # fmt: skip
@device_option("Torch device that encodes")
@click.option("--ray", is_flag=True, help="Render and encode over the machines of a Ray cluster.")
def render(recipe: str, output: Path, checkpoint: str, threads: int | None, **options: Any) -> None:
    """Render the clips that a recipe trains on, and encode them with a checkpoint."""
    import torch

    from vmla.cli.options.device import say_device
    from vmla.cli.progress import ProgressLine
    from vmla.train.data.latents import render_latents
    from vmla.train.recipes.from_scratch import pretraining_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    settings, options["device"] = pretraining_recipe(recipe).latents, str(say_device(options["device"]))
    with ProgressLine(sys.stderr) as line:
        render_latents(settings, checkpoint, output, line.show, **options)


main.add_command(inspect)
main.add_command(convert)
main.add_command(push)
main.add_command(codec)
