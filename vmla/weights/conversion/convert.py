"""A Wan transformer to a VideoMLA checkpoint, layer by layer, with a report of the errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.atomic_files import atomic_folder
from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.attention import HeadAttention, LatentAttention
from vmla.config import ModelConfig
from vmla.scheduler import Sampler
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import WEIGHTS, Checkpoint
from vmla.weights.conversion.activations import (
    MEND,
    CalibrationBatch,
    TracedLayer,
    all_frames,
    layers_of,
)
from vmla.weights.conversion.spectral import AttentionInputs, Choices, convert_attention
from vmla.weights.conversion.to_mha import unfold_attention
from vmla.weights.formats.files import INDEX, PIPELINE, write_json, write_tensors
from vmla.weights.published.pipeline_parts import carry_over
from vmla.weights.source import Source, shapes_of

REPORT = "conversion.json"
SAMPLER = Sampler(kind="euler", steps=50, shift=5.0)
"""Sampler of a model that is not distilled: Wan's 50 steps."""


@dataclass(frozen=True)
class Conversion:
    """Settings of a conversion: the target's layout and widths, and how to initialise it."""

    source: Source
    config: ModelConfig
    """Sizes of the result, in either layout."""
    choices: Choices
    calibration: CalibrationBatch
    dtype: torch.dtype = torch.float32
    sampler: Sampler | None = None
    """Sampler of the result; None takes that of the pipeline if it is one of ours, else `SAMPLER`."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the result's `model_index.json`."""

    def write(self, folder: Path, report: Callable[[str], None], *, pipeline: Path | None = None) -> None:
        """Write the checkpoint to `folder`; a pipeline folder's other parts join it.

        Raises:
            UserError: if `folder` exists, or the weights lead to numbers that are not finite.
        """
        if folder.exists():
            raise UserError(f"{folder} exists already; remove it or choose another folder")
        records: list[dict[str, Any]] = []
        with atomic_folder(folder) as temporary:
            part = temporary / "transformer"
            part.mkdir()
            _write_shards(part, self._shards(records, report), self.config.num_layers + 1)
            write_json(part / "config.json", {"_class_name": "VideoMLA", **self.config.to_dict()})
            write_json(temporary / REPORT, self._record(records))
            finish_folder(temporary, pipeline, self.sampler or _schedule(pipeline), self.notes)
        report(f"wrote {folder}")

    def _record(self, layers: list[dict[str, Any]]) -> dict[str, Any]:
        kept = {"source": str(self.source.path), "choices": asdict(self.choices), "layers": layers}
        if (lora := self.source.lora) is not None:
            kept["lora"] = {"file": str(lora.path), "strength": lora.strength}
        return {**kept, "tokens": self.calibration.latents[:, 0].numel() // self.config.patch_size**2}

    def _shards(
        self, records: list[dict[str, Any]], report: Callable[[str], None]
    ) -> Iterator[dict[str, Tensor]]:
        """Tensors of the result: those of no block, then block by block."""
        yield self._cast(self.source.outer())
        if self.source.config.layout == self.config.layout:
            for layer in range(self.config.num_layers):
                yield self._cast(self.source.part(f"blocks.{layer}."), layer)
            return
        for seen in layers_of(self.source, self.calibration):
            try:
                attention, record = (self.attention if self.config.layout == "mla" else self.unfolded)(seen)
            except torch.linalg.LinAlgError as error:
                said = f"layer {seen.layer + 1} cannot be decomposed; {MEND}"
                raise UserError(f"{self.source.path}: {said}") from error
            records.append(record)
            report(_line(record, self.config.num_layers))
            others = {name: t for name, t in seen.weights.items() if not name.startswith("attn1.")}
            new = {f"attn1.{name}": tensor for name, tensor in attention.items()}
            yield self._cast({**others, **new}, seen.layer)

    def attention(self, seen: TracedLayer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One layer's latent attention, and the error of both initialisations against its source."""
        wan = {n.removeprefix("attn1."): t for n, t in seen.weights.items() if n.startswith("attn1.")}
        inputs = AttentionInputs.of(seen.inputs.flatten(0, 1), whiten=self.choices.whiten)
        made, errors = {}, {}
        energy: dict[str, float] = {}
        for init in ("spectral", "random"):
            choices = replace(self.choices, init=init, seed=self.choices.seed * 1_000_003 + seen.layer)
            made[init], kept = convert_attention(wan, self.config, inputs, choices)
            attention = LatentAttention(self.config)
            attention.load_state_dict(made[init])
            errors[init] = output_error(attention, seen, self.config)
            energy |= kept
        return made[self.choices.init], {"layer": seen.layer, "energy": energy, "output error": errors}

    def unfolded(self, seen: TracedLayer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One layer's attention per head, and how far it is from the latent one that it replaces."""
        latent = {n.removeprefix("attn1."): t for n, t in seen.weights.items() if n.startswith("attn1.")}
        seed = self.choices.seed * 1_000_003 + seen.layer
        made, energy = unfold_attention(latent, self.config, seen.inputs.flatten(0, 1), seed=seed)
        attention = HeadAttention(self.config)
        attention.load_state_dict(made)
        error = output_error(attention, seen, self.config)
        return made, {"layer": seen.layer, "energy": energy, "output error": {"unfolded": error}}

    def _cast(self, tensors: dict[str, Tensor], layer: int | None = None) -> dict[str, Tensor]:
        prefix = "" if layer is None else f"blocks.{layer}."
        made = {prefix + name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        for name, tensor in made.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{self.source.path}: {name} of the result is not finite; {MEND}")
        return made


def output_error(attention: LatentAttention | HeadAttention, seen: TracedLayer, config: ModelConfig) -> float:
    """Distance of the attention's outputs from those of the source, as a share of their size."""
    window = all_frames(VideoMLA.rotary(config), seen.inputs.shape[1] // config.tokens_per_frame)
    lost = size = 0.0
    with torch.no_grad():
        for x, expected in zip(seen.inputs, seen.outputs, strict=True):
            out, _ = attention(x[None], x.new_empty(1, 0, config.entry_width), window)
            lost += float((out[0] - expected).square().sum())
            size += float(expected.square().sum())
    return float((lost / size) ** 0.5) if size else float(lost > 0)


def _line(record: dict[str, Any], layers: int) -> str:
    what, kept = next(iter(record["energy"].items()))
    errors = ", ".join(f"{error:.3f} {start}" for start, error in record["output error"].items())
    return f"layer {record['layer'] + 1} of {layers}: {kept:.1%} of {what} kept, output error {errors}"


def _write_shards(folder: Path, shards: Iterator[dict[str, Tensor]], count: int) -> None:
    """One file for each part, and the index that joins them."""
    stem, end = WEIGHTS.split(".")
    weight_map: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{count:05d}.{end}"
        write_tensors(folder / name, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _schedule(pipeline: Path | None) -> Sampler:
    """The sampler of a model of ours, or `SAMPLER`."""
    if pipeline is not None:
        path = pipeline / "scheduler" / "scheduler_config.json"
        if path.exists() and read_json(path).get("_class_name") == "Sampler":
            return Checkpoint(pipeline, {}).sampler()
    return SAMPLER


def finish_folder(
    folder: Path, pipeline: Path | None, sampler: Sampler, notes: Mapping[str, Any] | None = None
) -> None:
    """Add the schedule, the other parts of `pipeline` (linked where the disk allows) and the index."""
    (folder / "scheduler").mkdir(exist_ok=True)
    schedule = {"_class_name": "Sampler", **sampler.settings()}
    write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    if pipeline is not None:
        carry_over(pipeline, folder)
    index = {"_class_name": PIPELINE, "transformer": ["vmla", "VideoMLA"]}
    write_json(folder / INDEX, {**_index(pipeline), **index, **(notes or {})})


def _index(pipeline: Path | None) -> dict[str, Any]:
    """The index of a checkpoint of ours, which says what it was trained on; nothing of another's."""
    if pipeline is None or not (pipeline / INDEX).exists():
        return {}
    index: dict[str, Any] = read_json(pipeline / INDEX)
    return index if index.get("_class_name") == PIPELINE else {}


def plan(source: ModelConfig, config: ModelConfig, *, tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """A conversion's needs, from sizes alone: parameters, and bytes on disk and in memory."""
    before, outer = _parameters(source)
    after, _ = _parameters(config)
    block, width = (before - outer) // source.num_layers, source.inner_dim
    stack = source.num_attention_heads * config.qk_nope_head_dim + width
    # Float64: the stack, its whitened form and its three factors; four square matrices of the inputs.
    algebra = 8 * (5 * stack * width + 4 * width**2 + 3 * tokens * width)
    states = 4 * tokens * (3 * width + source.ffn_dim)
    return {
        "parameters of the source": before,
        "parameters of the result": after,
        "bytes on disk": after * dtype.itemsize,
        "bytes in memory": 4 * (outer + 2 * block) + algebra + states,
    }


def _parameters(config: ModelConfig) -> tuple[int, int]:
    """Number of parameters of the whole model, and of its parts outside the blocks."""
    counts = {name: math.prod(shape) for name, shape in shapes_of(config).items()}
    return sum(counts.values()), sum(n for name, n in counts.items() if not name.startswith("blocks."))
