"""`vmla-train convert`: options to a conversion, planned or carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plugins.errors import UserError
from vmla.cli.machine import binary_size
from vmla.config import MODEL_CONFIGS, ModelConfig, named_config
from vmla.train.cli.convert_checks import OF_FILES, Given, check_change, check_ours, check_together
from vmla.train.cli.inspect_options import proposal_of
from vmla.weights.checkpoint import shipped_names
from vmla.weights.conversion.activations import CalibrationBatch
from vmla.weights.conversion.convert import Conversion, plan
from vmla.weights.conversion.spectral import Choices
from vmla.weights.inspection.mapping import LatentMap, read_map
from vmla.weights.inspection.propose import Guess
from vmla.weights.locate import TRANSFORMER, Hub, locate
from vmla.weights.published.pipeline_parts import PARTS, check_parts, check_pipeline, missing_parts
from vmla.weights.published.presets import Preset, preset
from vmla.weights.source import Source, is_ours, open_source

if TYPE_CHECKING:
    from vmla.train.data.latents import LatentSet

AUTO = "auto"
"""Value of `--map` that takes the mapping which names and shapes propose."""
Say = Callable[[str], None]


def run_conversion(options: Mapping[str, Any], given: Given, report: Say, say: Say) -> None:
    """Convert as the options of the command say; `report` shows progress, `say` prints results.

    Raises:
        UserError: for options or a source that do not fit together.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options["dtype"]]
    if options["dry_run"] and options["source"] in MODEL_CONFIGS.keys() - shipped_names():
        given.refuse(OF_FILES, f"says how weights are read, and {options['source']} has none here")
        sizes = named_config(options["source"], layout="mha")
        config = wanted(sizes, options)
        check_change(sizes.layout, config.layout, given)
        _say_plan(sizes, config, options["clips"], dtype, say)
        return
    check_together(options, given, AUTO)
    told = None if options["preset"] is None else preset(options["preset"])
    path = locate(options["source"], revision=options["revision"], hub=_hub(options))
    if is_ours(path):
        check_ours(path, given)
    source = _open(path, options, told)
    config = wanted(source.config, options)
    check_change(source.config.layout, config.layout, given)
    if options["dry_run"]:
        _say_plan(source.config, config, options["clips"], dtype, say)
        return
    if options["output"] is None:
        raise UserError("no output folder; give one with -o, or --dry-run")
    pipeline = _pipeline(path, config, options)
    choices = Choices(**{field.name: options[field.name] for field in fields(Choices)})
    sampler, notes = (None, {}) if told is None else (told.sampler, _notes(told, options))
    job = Conversion(source, config, choices, calibration_of(source, options), dtype, sampler, notes)
    _say_source(source, path, told, say)
    _say_result(config, pipeline, told, options, say)
    job.write(options["output"], report, pipeline=pipeline)


def _open(path: Path, options: Mapping[str, Any], told: Preset | None) -> Source:
    like = named_config(options["sizes"])
    source = open_source(
        path,
        like=like if told is None else told.sizes(like),
        part=options["part"],
        mapping=options["names"],
        variant=options["variant"],
        cuts=_cuts(path, options),
    )
    if options["lora"] is not None:
        source = source.with_lora(locate(options["lora"], hub=_hub(options)), options["strength"])
    return source if told is None else replace(source, config=told.sizes(source.config))


def _cuts(path: Path, options: Mapping[str, Any]) -> LatentMap | None:
    """The mapping in a file, or the one that names and shapes propose, if these leave nothing open."""
    if options["cuts"] is None:
        return None
    if options["cuts"] != Path(AUTO):
        return read_map(options["cuts"])
    proposal = proposal_of(path, options["part"], Guess(heads=options["heads"]))
    if proposal.open:
        mend = f"vmla-train inspect {path} -o map.yaml writes a mapping to be mended, for --map map.yaml"
        raise UserError(f"{path}: {'; '.join(proposal.open)}; {mend}")
    return proposal.mapping


def _pipeline(path: Path, config: ModelConfig, options: Mapping[str, Any]) -> Path | None:
    """The folder that other parts come from: the one that is named, or the source itself."""
    if options["pipeline"] is None:
        if not path.is_dir():
            return None
        check_parts(path, config)
        return path
    pipeline = locate(options["pipeline"], hub=_hub(options), leave=TRANSFORMER)
    check_pipeline(pipeline, config)
    return pipeline


def _hub(options: Mapping[str, Any]) -> Hub:
    return Hub(offline=options["offline"])


def _notes(told: Preset, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"preset": told.record(options["preset"])}


def _say_source(source: Source, path: Path, told: Preset | None, say: Say) -> None:
    """Print which tensors of the source are left out, and which assumptions were made."""
    if source.beside:
        more = f" and {len(source.beside) - 1} others" if len(source.beside) > 1 else ""
        say(f"left out, not of the transformer: {source.beside[0]}{more}")
    if told is not None and told.note:
        say(told.note)
    if told is None and path.is_file():
        say("no --preset: sampled with 50 steps of Euler, as a model that is not distilled")


def _say_result(
    config: ModelConfig, pipeline: Path | None, told: Preset | None, options: Mapping[str, Any], say: Say
) -> None:
    """Print warnings: how the result may differ from the source."""
    if missing := PARTS if pipeline is None else missing_parts(pipeline):
        say(f"the result has no {', '.join(missing)}, without which it makes no video; --with adds them")
    if told is not None and options["layout"] is None and told.layout != config.layout:
        say(
            f"{options['preset']} is a preset for layout {told.layout}; these weights have layout "
            f"{config.layout} and keep it"
        )


def wanted(source: ModelConfig, options: Mapping[str, Any]) -> ModelConfig:
    """Sizes of the result: those of the source, with the latent's widths."""
    given = {key: options[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "q_lora_rank")}
    latent = {key: value for key, value in given.items() if value is not None}
    if source.layout == "mha":
        latent.setdefault("q_lora_rank", source.inner_dim // 2)  # the paper's proportion, 768 of 1536
    own = "mla" if options["preset"] is None else source.layout
    absolute = options["absolute_positions"] or source.absolute_positions
    return replace(source, layout=options["layout"] or own, absolute_positions=absolute, **latent)


def calibration_of(source: Source, options: Mapping[str, Any]) -> CalibrationBatch:
    """Noise, or clips of an encoded folder at noise levels spread over the schedule."""
    count, seed = options["clips"], options["seed"]
    folder: Path | None = options["calibration"]
    if folder is None:
        return CalibrationBatch.noise(source.config, clips=count, seed=seed)
    from vmla.train.data.clips import open_clips

    return calibration_on(open_clips(folder, source.config), source.config, count=count, seed=seed)


def calibration_on(clips: LatentSet, config: ModelConfig, *, count: int, seed: int) -> CalibrationBatch:
    """The first chunk of each of the first `count` clips, noised."""
    chosen = torch.arange(min(count, len(clips.latents)))
    latents, text = clips.latents[chosen][:, :, : config.chunk], clips.text[chosen]
    return CalibrationBatch.noised(latents.float(), text.float(), shift=5.0, seed=seed)


def _say_plan(source: ModelConfig, config: ModelConfig, clips: int, dtype: torch.dtype, say: Say) -> None:
    tokens = clips * source.chunk * source.tokens_per_frame
    for name, number in plan(source, config, tokens=tokens, dtype=dtype).items():
        size = binary_size(number) if name.startswith("bytes") else f"{number:,}"
        say(f"{name.replace('bytes ', '')}: {size}")
    say(f"cached per token and layer: {source.entry_width} numbers before, {config.entry_width} after")
