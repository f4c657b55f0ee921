"""Describes engines as text for a person to read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.checks import check_host
from export.engine.manifest import NAME, Manifest, TensorSpec
from export.lowering.exclusions import UNEVEN, reason_to_exclude
from plugins.errors import UserError


def describe(manifest: Manifest) -> Iterator[str]:
    """The contents of a manifest, line by line."""
    host, sizes = manifest.host, manifest.model
    yield f"backend: {manifest.backend}, precision {manifest.precision}, batch {manifest.batch}"
    yield f"checkpoint: {manifest.checkpoint}, model {manifest.model_hash}"
    yield f"model: {sizes['layout']}, " + ", ".join(
        f"{name.replace('_', ' ')} {sizes[name]}"
        for name in ("num_layers", "num_attention_heads", "attention_head_dim", "chunk")
    )
    yield "cache: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in manifest.cache.items())
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
        yield (
            f"calibrated on {len(watched['prompts'])} prompts, {watched['chunks']} chunks, "
            f"seed {watched['seed']}"
        )


def _reason(manifest: Manifest, precision: str, layer: str) -> str:
    if manifest.quantization is None or precision == manifest.precision:
        return ""
    return f": {reason_to_exclude(layer, (), manifest.model['num_layers']) or UNEVEN}"


def layers(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The layers that TensorRT built for each program, counted by kind and precision, plugins included."""
    for name in manifest.programs:
        path = folder / f"{name}.layers.json"
        if path.is_file():
            yield f"layers of {name}:"
            counted = Counter(map(_kind, json.loads(path.read_text())["Layers"]))
            yield from (f"  {count} {kind}" for kind, count in sorted(counted.items()))


def _kind(layer: dict[str, Any]) -> str:
    """A layer's kind and the type of its first output, the last word of `Row major linear FP16 format`."""
    kind = str(layer.get("LayerType", "unknown"))
    outputs = layer.get("Outputs") or [{}]
    written = str(outputs[0].get("Format/Datatype"))
    types = re.findall(r"\b(?:FP|BF|Float|Half|Int|INT|Bool|BOOL|E4M3)\w*", written)
    return f"{kind} {types[-1]}" if types else kind


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
    what = f"{manifest.backend} {manifest.precision}, batch {manifest.batch}, {manifest.checkpoint}"
    try:
        check_host(manifest, place)
    except UserError as refusal:
        return f"{what}; does not run here: {refusal}"
    return what


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"
