"""Copies weights and files of a pipeline's folder into a checkpoint: linked, or written anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vmla.weights.formats.files import write_json, write_tensors

SHARD = 2**30
"""Approximate bytes of each file that is written anew."""


def write_shards(tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    """Write tensors as safetensors shards of about `SHARD` bytes each, and the index that joins them."""
    weight_map: dict[str, str] = {}
    stem, end = name.split(".")
    for number, group in enumerate(_groups(tensors)):
        shard = f"{stem}-{number:05d}.{end}"
        write_tensors(folder / shard, group, {"format": "pt"})
        weight_map |= dict.fromkeys(group, shard)
    write_json(folder / f"{name}.index.json", {"metadata": {}, "weight_map": weight_map})


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors of one file each; one that has two names keeps the first."""
    group: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.numel())
        if place in seen:
            continue
        seen.add(place)
        group[name] = tensor
        if sum(held.nbytes for held in group.values()) >= SHARD:
            yield group
            group = {}
    if group:
        yield group


def link(source: str | Path, target: str | Path) -> None:
    """A second name for the same file; a copy where the disk has none."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
