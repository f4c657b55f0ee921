"""Engines as text for a person to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from export.manifest import NAME, Manifest, TensorSpec
from vmla.errors import UserError


def describe(manifest: Manifest) -> Iterator[str]:
    """What an engine is, line by line."""
    host, sizes = manifest.host, manifest.model
    yield f"backend: {manifest.backend}, precision {manifest.precision}, batch {manifest.batch}"
    yield f"checkpoint: {manifest.checkpoint}, model {manifest.model_hash}"
    yield f"model: {sizes['layout']}, " + ", ".join(
        f"{name.replace('_', ' ')} {sizes[name]}" for name in ("width", "heads", "layers", "chunk")
    )
    yield "cache: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in manifest.cache.items())
    for name, signature in manifest.programs.items():
        yield f"{name}:"
        yield from (f"  in  {_tensor(spec)}" for spec in signature.inputs)
        yield from (f"  out {_tensor(spec)}" for spec in signature.outputs)
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    yield f"built for: {host.device}, {host.architecture}, with {versions}"
    yield from (f"{name}: sha256 {digest}" for name, digest in manifest.files.items())


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
        what = f"{manifest.backend} {manifest.precision}, batch {manifest.batch}, {manifest.checkpoint}"
        manifest.check_host(place)
    except UserError as refusal:
        return f"does not run here: {refusal}"
    return what


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"
