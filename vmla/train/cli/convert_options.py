"""`vmla-train convert`: options to a conversion, planned or carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plugins.errors import UserError
from vmla.config import RECIPES, ModelConfig, recipe
from vmla.weights.conversion.activations import Calibration
from vmla.weights.conversion.convert import Conversion, plan
from vmla.weights.conversion.spectral import Choices
from vmla.weights.locate import locate
from vmla.weights.source import Source, open_source

if TYPE_CHECKING:
    from vmla.train.data.latents import LatentSet

Say = Callable[[str], None]


def run_conversion(options: Mapping[str, Any], report: Say, say: Say) -> None:
    """Convert as the options of the command say; `report` shows progress, `say` prints results.

    Raises:
        UserError: for whatever does not fit.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options["dtype"]]
    if options["dry_run"] and options["source"] in RECIPES:
        sizes = recipe(options["source"], layout="mha")
        _say_plan(sizes, wanted(sizes, options), options["clips"], dtype, say)
        return
    path = locate(options["source"], revision=options["revision"], offline=options["offline"])
    source = open_source(path, like=recipe(options["recipe"]), part=options["part"], mapping=options["names"])
    config = wanted(source.config, options)
    if options["dry_run"]:
        _say_plan(source.config, config, options["clips"], dtype, say)
        return
    if options["output"] is None:
        raise UserError("no output folder; give one with -o, or --dry-run")
    choices = Choices(**{field.name: options[field.name] for field in fields(Choices)})
    job = Conversion(source, config, choices, calibration_of(source, options), dtype)
    job.write(options["output"], report, pipeline=path if path.is_dir() else None)


def wanted(source: ModelConfig, options: Mapping[str, Any]) -> ModelConfig:
    """Sizes of the result: those of the source, with the latent's widths."""
    given = {key: options[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "q_lora_rank")}
    latent = {key: value for key, value in given.items() if value is not None}
    if source.layout == "mha":
        latent.setdefault("q_lora_rank", source.inner_dim // 2)  # as the paper's 768 of 1536
    return replace(source, layout=options["layout"], **latent)


def calibration_of(source: Source, options: Mapping[str, Any]) -> Calibration:
    """Noise, or clips of an encoded folder at noise levels spread over the schedule."""
    count, seed = options["clips"], options["seed"]
    folder: Path | None = options["calibration"]
    if folder is None:
        return Calibration.noise(source.config, clips=count, seed=seed)
    from vmla.train.data.clips import open_clips

    return calibration_on(open_clips(folder, source.config), source.config, count=count, seed=seed)


def calibration_on(clips: LatentSet, config: ModelConfig, *, count: int, seed: int) -> Calibration:
    """The first chunk of each of the first `count` clips, noised."""
    chosen = torch.arange(min(count, len(clips.latents)))
    latents, text = clips.latents[chosen][:, :, : config.chunk], clips.text[chosen]
    return Calibration.noised(latents.float(), text.float(), shift=5.0, seed=seed)


def _say_plan(source: ModelConfig, config: ModelConfig, clips: int, dtype: torch.dtype, say: Say) -> None:
    tokens = clips * source.chunk * source.tokens_per_frame
    for name, number in plan(source, config, tokens=tokens, dtype=dtype).items():
        size = f"{number / 2**30:.2f} GiB" if name.startswith("bytes") else f"{number:,}"
        say(f"{name.replace('bytes ', '')}: {size}")
    say(f"cached per token and layer: {source.entry_width} numbers before, {config.entry_width} after")
