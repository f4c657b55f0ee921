"""The tensors of a file, shards or a pickle, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.weights.files import readable, shards_of

PARTS = ("generator_ema", "generator", "model", "critic")
"""Networks that a training checkpoint may hold, in the order in which one is chosen."""


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files by name; headers are read at once, a tensor when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open `path`, or the shards that its index beside it names.

        Raises:
            UserError: if one is missing or cut short.
        """
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for shard in shards_of(path):
            with readable(shard):
                file: Any = safe_open(shard, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Names, of all shards."""
        return iter(self._files)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its header."""
        return tuple(self._files[name].get_slice(name).get_shape())


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of tensor `name` without reading it where that is possible."""
    return tensors.shape(name) if isinstance(tensors, LazyTensors) else tuple(tensors[name].shape)


def open_pickle(path: Path, part: str | None = None) -> Mapping[str, Tensor]:
    """The state dict in a `.pt` file of the Self-Forcing family; tensors stay on disk until used.

    Args:
        path: loaded with `weights_only`: no code in it is ever run.
        part: one of `PARTS`; the first that is there if not given.

    Raises:
        UserError: if it is damaged, holds more than tensors, or has no such part.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a file of tensors alone; copy it again, or save its state dict anew"
        ) from error
    if not isinstance(held, Mapping):
        raise UserError(f"{path} holds a {type(held).__name__}, not tensors by name")
    if "generator_lora" in held:
        raise UserError(f"{path} holds LoRA weights; merge them into their base model first")
    chosen = _part(held, part, path)
    if strange := [name for name, value in chosen.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path}: {strange[0]} is no tensor; save its state dict alone, or name its part")
    return chosen


def _part(held: Mapping[str, Any], part: str | None, path: Path) -> Mapping[str, Any]:
    there = [name for name in PARTS if isinstance(held.get(name), Mapping)]
    if part is None:
        return held[there[0]] if there else held
    if part not in there:
        raise UserError(f"{path} has no part {part}; it has {', '.join(there) or 'tensors alone'}")
    return held[part]
