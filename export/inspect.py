"""Describes engines as text for a person to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.checks import check_host
from export.engine.manifest import NAME, Manifest, TensorSpec
from export.lowering.exclusions import UNEVEN, reason_to_exclude
from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError


def describe(manifest: Manifest) -> Iterator[str]:
    """The contents of a manifest, line by line."""
    host, sizes = manifest.host, manifest.model
    yield f"backend: {manifest.backend}, precision {_arithmetic(manifest)}, batch {manifest.batch}"
    yield f"checkpoint: {manifest.checkpoint}, model {manifest.model_hash}"
    yield f"model: {sizes['layout']}, " + ", ".join(
        f"{name.replace('_', ' ')} {sizes[name]}"
        for name in ("num_layers", "num_attention_heads", "attention_head_dim", "chunk")
    )
    yield "cache: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in manifest.cache.items())
    if manifest.window == "held":
        yield "slots: those that hold a frame, and no mask; the sizes below are those of a full window"
    if manifest.regional:
        yield "compiled: one layer for all of them, whose weights lie beside it"
    for name, signature in manifest.programs.items():
        yield f"{name}:"
        yield from (f"  in  {_tensor(spec)}" for spec in signature.inputs)
        yield from (f"  out {_tensor(spec)}" for spec in signature.outputs)
    yield from _layers(manifest)
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    if manifest.compiler:
        yield "compiler: " + ", ".join(f"{name} {value}" for name, value in manifest.compiler.items())
    yield f"built for: {host.device}, {host.architecture}, with {versions}"
    yield from (f"{name}: sha256 {digest}" for name, digest in manifest.files.items())


def _layers(manifest: Manifest) -> Iterator[str]:
    """Linear layers by precision and kind, with the reason why some are not quantised."""
    yield "linear layers:"
    for precision, names in manifest.layers.items():
        yield f"  {precision}: {len(names)}"
        kinds = Counter(
            re.sub(r"^blocks\.\d+\.", "", name) + _reason(manifest, precision, name) for name in names
        )
        yield from (f"    {count} {kind}" for kind, count in kinds.items())
    if (made := manifest.quantization) is not None:
        watched = made.calibration
        yield f"products of codes: {made.products}"
        yield (f"calibrated on {len(watched.prompts)} prompts, {watched.chunks} chunks, seed {watched.seed}")


def _reason(manifest: Manifest, precision: str, layer: str) -> str:
    if manifest.quantization is None or precision == manifest.precision:
        return ""
    return f": {reason_to_exclude(layer, (), manifest.model['num_layers']) or UNEVEN}"


LARGEST_RECORD = 2**26
"""Bytes of TensorRT's record of layers that are read at most; thirty blocks take a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """The fields that we read of TensorRT's record of a layer."""

    LayerType: str = "unknown"
    Outputs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The fields that we read of TensorRT's record of an engine."""

    Layers: list[LayerRecord]


def layers(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The layers that TensorRT built for each program, counted by kind and precision, plugins included."""
    for name in manifest.programs:
        path = folder / f"{name}.layers.json"
        if path.is_file():
            yield f"layers of {name}:"
            told = typed(read_json(path, largest=LARGEST_RECORD), Layers, str(path), others="ignore")
            counted = Counter(map(_kind, told.Layers))
            yield from (f"  {count} {kind}" for kind, count in sorted(counted.items()))


def _kind(layer: LayerRecord) -> str:
    """A layer's kind and the type of its first output, the last word of `Row major linear FP16 format`."""
    written = str(layer.Outputs[0].get("Format/Datatype")) if layer.Outputs else ""
    types = re.findall(r"\b(?:FP|BF|Float|Half|Int|INT|Bool|BOOL|E4M3)\w*", written)
    return f"{layer.LayerType} {types[-1]}" if types else layer.LayerType


def table(folder: Path) -> Iterator[str]:
    """A line for each engine in `folder`, in alphabetical order.

    Raises:
        UserError: if there is none.
    """
    places = sorted(path.parent for path in folder.glob(f"[!.]*/{NAME}"))
    if not places:
        raise UserError(f"no engines in {folder}; build one with: vmla-export build")
    for place in places:
        yield f"{place}: {_summary(place)}"


def _summary(place: Path) -> str:
    try:
        manifest = Manifest.read(place)
    except UserError as refusal:
        return f"no engine that can be read: {refusal}"
    what = f"{manifest.backend} {_arithmetic(manifest)}, batch {manifest.batch}, {manifest.checkpoint}"
    try:
        check_host(manifest, place)
    except UserError as refusal:
        return f"{what}; does not run here: {refusal}"
    return what


def _arithmetic(manifest: Manifest) -> str:
    """The precision, and the form of attention if it is not the usual one."""
    form = "" if manifest.attention == "native" else f", attention {manifest.attention}"
    return f"{manifest.precision}{form}"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"
