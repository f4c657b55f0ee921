"""Reads and writes the files of a checkpoint folder, with errors that say which file to repair."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plugins.atomic_files import atomic_write, atomic_write_text
from plugins.documents.json_file import read_json
from plugins.documents.regular_file import opened
from plugins.documents.tensor_header import read_header
from plugins.documents.typed import typed
from plugins.errors import UserError

Shape = tuple[int, ...]
INDEX = "model_index.json"
"""File of a pipeline's folder, diffusers' or ours, that names its class and its parts."""
PIPELINE = "VideoMLAPipeline"
"""The class that the index of a checkpoint of ours names."""
LISTED = 10
"""Tensors that an error names at most."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The fields that we read of the index of a sharded file."""

    weight_map: dict[str, str]
    """The file that each tensor lies in."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON; the file appears whole or not at all."""
    atomic_write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of the shards that its index beside it names.

    Raises:
        UserError: if it is missing or cut short.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for shard in shards_of(path):
        shapes_in(shard)  # raises for a file that is cut short
        with readable(shard):
            tensors |= load_file(shard)
    return tensors


def count_elements(path: Path) -> int:
    """How many numbers the tensors of `path` (or its shards) hold; only headers are read.

    Raises:
        UserError: as `read_tensors`.
    """
    return sum(math.prod(shape) for shard in shards_of(path) for shape in shapes_in(shard).values())


def shapes_in(shard: Path) -> dict[str, Shape]:
    """The shapes of the tensors of one safetensors file, by name.

    Raises:
        UserError: if it is missing, or its header does not fit it.
    """
    return read_header(shard, mend="copy the whole checkpoint folder").shapes


def shards_of(path: Path) -> list[Path]:
    """`path` itself, or the shards that an index beside it names.

    Raises:
        UserError: if the index names none.
    """
    index = path.with_name(path.name + ".index.json")
    if not index.exists():
        return [path]
    return shards_named(index)


def shards_named(index: Path) -> list[Path]:
    """The shards that the file `index` names, each of which lies beside it.

    Raises:
        UserError: if it names none, or one that lies elsewhere.
    """
    told = typed(read_json(index), ShardIndex, str(index), others="ignore")
    names = sorted(set(told.weight_map.values()))
    if not names or any(name in ("", "..") or Path(name).name != name for name in names):
        raise UserError(f"{index} names no shards beside it; copy the whole checkpoint folder")
    return [index.with_name(name) for name in names]


@contextmanager
def readable(shard: Path) -> Iterator[None]:
    """Inside, errors of a damaged safetensors file become one line."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{shard} is missing; copy the whole checkpoint folder") from error
    except SafetensorError as error:
        raise UserError(f"{shard} is damaged ({error}); copy it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, which appears whole or not at all."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(contiguous, temporary, dict(metadata))


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors` into `module`; names and shapes must match one for one.

    Raises:
        UserError: naming the tensors that are missing, unknown, misshapen or not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    wide = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    for name, tensor in wide.items():
        refuse_not_finite(name, tensor, path)
    module.load_state_dict(wide, assign=True)


def refuse_not_finite(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse weights with NaN or infinity, which would make nothing but black pictures.

    Raises:
        UserError: naming the tensor, if one of its numbers is infinite or none at all.
    """
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: tensor {name} is not finite; copy the file again, or train less boldly")


def check_shapes(
    expected: Mapping[str, Shape], found: Mapping[str, Shape], path: Path, against: str = "config.json"
) -> None:
    """Compare the tensors that a model has with those of its file; `against` is what gave its sizes.

    Raises:
        UserError: one line that lists at most ten that are missing, misshapen or unknown, with shapes.
    """
    faults = [f"lacks the tensor {name} {list(s)}" for name, s in expected.items() if name not in found]
    faults += [
        f"tensor {name} has shape {list(found[name])}, {against} asks for {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    unknown = sorted(found.keys() - expected)
    faults += [f"has an unknown tensor {name} {list(found[name])}" for name in unknown]
    if faults:
        more = f", and {len(faults) - LISTED} others" if len(faults) > LISTED else ""
        listed = ", ".join(faults[:LISTED])
        raise UserError(f"{path}: {listed}{more}; it does not fit its {against}")


def hash_weights(path: Path) -> str:
    """SHA-256 over the SHA-256 of the safetensors file `path`, or of each of its shards.

    Raises:
        UserError: if one is missing.
    """
    digest = hashlib.sha256()
    for shard in shards_of(path):
        digest.update(bytes.fromhex(hash_file(shard)))
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: if it is missing, or no regular file.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
