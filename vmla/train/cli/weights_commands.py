"""`vmla-train inspect`, `convert` and `push`: for other people's weights, and for publishing our own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vmla.cli.command import Verb
from vmla.cli.common_options import FiniteRange, ThreadCount
from vmla.cli.options.choices import Choice
from vmla.cli.options.device import device_option
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say
from vmla.config import MODEL_CONFIGS
from vmla.weights.published import JOINT
from vmla.weights.published import NAMES as PRESET_NAMES

FOLDER = click.Path(file_okay=False, path_type=Path)
CONVERT_GROUPS = {
    "What is converted": ("source", "pipeline", "preset", "part", "variant", "lora", "strength", "names",
                          "cuts", "heads", "revision", "offline"),
    "What it becomes": ("output", "layout", "sizes", "kv_lora_rank", "qk_rope_head_dim", "q_lora_rank",
                        "absolute_positions", "dtype", "dry_run"),
    "How latent attention begins": ("init", "whiten", "balance", "key_weight", "stack", "gains", "rotary",
                                    "biases", "latent_gains", "calibration", "clips", "seed"),
}  # fmt: skip
PARTS = ("generator_ema", "generator", "model", "critic", "state_dict", "module")
"""The same names as in `vmla.weights.formats.pickles.PARTS`, a module that needs PyTorch."""


@click.command(cls=Verb)
@click.argument("file")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="YAML file that gets the proposed mapping of latent attention.")  # fmt: skip
@click.option("--part", type=Choice(PARTS), help="Which model of a training checkpoint to take.")
@click.option("--heads", type=click.IntRange(min=1),
              help="Number of attention heads (default: as many as are 128 wide).")  # fmt: skip
@click.option("--rotary", type=Choice(["first", "last"]),
              help="Rows of a fused projection that rotate (default: by its name, or last).")  # fmt: skip
@click.option("--pairs", type=Choice(["interleaved", "halved"]), default="interleaved",
              show_default=True, help="Rows that rotate together: neighbours, or half apart.")  # fmt: skip
def inspect(file: str, output: Path | None, part: str | None, **guess: Any) -> None:
    """List the tensors of FILE, a path or hub id, by pattern and shape, and say what it is."""
    from vmla.train.cli.inspect_options import inspect_file
    from vmla.weights.inspection.propose import Guess
    from vmla.weights.locate import locate

    inspect_file(locate(file), part, Guess(**guess), output, say)


@click.command(cls=Verb, groups=CONVERT_GROUPS)
@click.option("--from", "source", required=True, help="A folder, a file, a hub id, or wan-1.3b or wan-14b "
              "for a dry run without weights.")  # fmt: skip
@click.option("--layout", type=Choice(["mla", "mha"]),
              help="Attention layout (default: mla; with --preset, the source's own).")  # fmt: skip
@click.option("--preset", type=Choice(PRESET_NAMES, also=[JOINT]),
              help="Published distilled model, as which the result is sampled.")  # fmt: skip
@click.option("--with", "pipeline", help="A diffusers folder of Wan, or its hub id, that gives codec, text "
              "encoder and tokenizer (default: the source, if it is a folder).")  # fmt: skip
@click.option("--init", type=Choice(["spectral", "random"]), default="spectral", show_default=True,
              help="How the latents' projections begin.")  # fmt: skip
@click.option("-o", "--output", type=FOLDER, help="Checkpoint folder to write.")
@click.option("--sizes", "--recipe", "sizes", type=Choice(MODEL_CONFIGS), default="wan-1.3b",
              help="Named model that gives picture size and window.")  # fmt: skip
@click.option("--kv-lora-rank", "--content-width", "kv_lora_rank", type=click.IntRange(min=1),
              help="Width of the shared latent (default: that of --sizes).")  # fmt: skip
@click.option("--qk-rope-head-dim", "--rotary-width", "qk_rope_head_dim", type=click.IntRange(min=2),
              help="Width of the shared rotary key (default: that of --sizes).")  # fmt: skip
@click.option("--q-lora-rank", "--query-width", "q_lora_rank", type=click.IntRange(min=1),
              help="Width of the query latent (default: half the model's).")  # fmt: skip
@click.option("--whiten/--no-whiten", default=True, show_default=True,
              help="Weigh the decomposition by the inputs that each layer sees.")  # fmt: skip
@click.option("--balance", type=FiniteRange(min=0, max=1), default=1.0, show_default=True,
              help="Share of the singular values that the down-projection takes.")  # fmt: skip
@click.option("--key-weight", type=FiniteRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Weight of keys against values in the decomposition.")  # fmt: skip
@click.option("--stack", type=Choice(["content", "whole"]), default="content", show_default=True,
              help="Which rows of the keys are decomposed with the values.")  # fmt: skip
@click.option("--gains", type=Choice(["fold", "drop"]), default="fold", show_default=True,
              help="What becomes of Wan's gains on queries and keys.")  # fmt: skip
@click.option("--rotary", type=Choice(["singular", "mean"]), default="singular", show_default=True,
              help="Shared rotary key: the heads' leading directions, or their mean.")  # fmt: skip
@click.option("--biases", type=Choice(["absorb", "drop"]), default="absorb", show_default=True,
              help="What becomes of the biases of queries and rotary keys.")  # fmt: skip
@click.option("--latent-gains", type=Choice(["fit", "one"]), default="fit", show_default=True,
              help="Gains of the norms that the latents get.")  # fmt: skip
@click.option("--calibration", type=FOLDER,
              help="Folder of encoded clips to calibrate with (default: pure noise).")  # fmt: skip
@click.option("--clips", type=click.IntRange(min=1), default=4, show_default=True,
              help="Number of clips to calibrate with.")  # fmt: skip
@click.option("--dtype", type=Choice(["float32", "bfloat16"]), default="float32", show_default=True,
              help="Type of the weights that are written.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of all that is drawn.")
@click.option("--part", type=Choice(PARTS), help="Which model of a training checkpoint to take.")
@click.option("--variant", help="Variant of the weights in a folder, e.g. fp16.")
@click.option("--lora", help="LoRA file to merge into the weights.")
@click.option("--strength", type=FiniteRange(-100, 100), default=1.0, show_default=True,
              help="Strength of the LoRA.")  # fmt: skip
@click.option("--names", type=click.Path(path_type=Path),
              help="JSON file that says what the source calls its latent projections.")  # fmt: skip
@click.option("--map", "cuts", type=click.Path(path_type=Path),
              help="Mapping of latent attention: a file of vmla-train inspect, or auto.")  # fmt: skip
@click.option(
    "--heads",
    type=click.IntRange(min=1),
    help="Number of attention heads, for --map auto (default: as many as are 128 wide).",
)
@click.option("--absolute-positions", type=click.IntRange(min=1), metavar="FRAMES",
              help="Count positions from the video's start, up to these latent frames, which were "
              "trained (default: relative to the window).")  # fmt: skip
@click.option("--revision", help="Revision of a hub repository.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option("--dry-run", is_flag=True, help="Print sizes and memory; write nothing.")
@click.pass_context
def convert(context: click.Context, /, **options: Any) -> None:
    """Make a VideoMLA checkpoint of Wan weights, layer by layer."""
    from vmla.cli.progress import ProgressLine
    from vmla.train.cli.convert_checks import Given
    from vmla.train.cli.convert_options import run_conversion

    with ProgressLine(sys.stderr) as line:
        run_conversion(options, Given(context), line.show, say)


@click.command(cls=Verb, groups={
    "What is trained": ("like", "checkpoint", "data", "output", "steps", "clips", "stop_after"),
    "Where": ("device", "threads"),
})  # fmt: skip
@click.option("--like", type=Choice(["taehv"]), required=True, expose_value=False,
              help="Architecture of the tiny decoder.")  # fmt: skip
@click.option("--with", "checkpoint", required=True, help="Checkpoint whose codec is the teacher.")
@click.option(
    "--data", type=FOLDER, required=True, help="Folder of clips that vmla-train encode made with it."
)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the run; run again to resume.")
@click.option("--steps", type=click.IntRange(min=1), default=20_000, show_default=True,
              help="Number of training steps.")  # fmt: skip
@click.option("--clips", type=click.IntRange(min=1), default=4, show_default=True,
              help="Number of clips of a step.")  # fmt: skip
@click.option("--stop-after", type=click.IntRange(min=1), help="Stop after this many more steps.")
@click.option("--threads", type=ThreadCount(), help="Number of CPU threads (default: all cores).")
@device_option("Torch device that trains")
@click.pass_context
def codec(
    context: click.Context, /, checkpoint: str, data: Path, output: Path, threads: int | None, **options: Any
) -> None:
    """Distil a tiny decoder, for vmla-run --decoder, from the codec of a checkpoint."""
    import torch

    from vmla.cli.options.device import say_device
    from vmla.cli.progress import ProgressLine
    from vmla.train.cli.codec_options import distil

    if threads is not None:
        torch.set_num_threads(threads)
    options["device"] = say_device(options["device"])
    with ProgressLine(sys.stderr) as line:
        made = distil(checkpoint, data, output, line.show, stop=context.ensure_object(Stop), **options)
    if made is not None:
        say(f"wrote {made}; use it with: vmla-run --checkpoint {checkpoint} --decoder {made}")


@click.command(cls=Verb)
@click.argument("folder", type=FOLDER)
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", help="Branch to upload to (default: main).")
def push(folder: Path, repo: str, private: bool, revision: str | None) -> None:
    """Upload checkpoint FOLDER with its model card to REPO, owner/name, on the Hugging Face hub."""
    from vmla.train.publish.push import push as upload

    say(upload(folder, repo, say, private=private, revision=revision))
