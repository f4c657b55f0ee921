"""One tensor of every clip of an encoded set, read from its shards when it is asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.weights.formats.files import readable, shapes_in


class Column:
    """Indexed by numbers of clips like a tensor whose first axis they are."""

    def __init__(self, shards: list[tuple[Path, int]], name: str) -> None:
        """`shards` are files with their numbers of clips.

        Raises:
            UserError: if one is missing, cut short or without that tensor.
        """
        self._name = name
        self._places = [(path, row) for path, count in shards for row in range(count)]
        for path, _ in shards:
            self._open(path)

    @cached_property
    def _files(self) -> dict[Path, Any]:
        return {}

    def _open(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._files:
            if self._name not in shapes_in(path):  # raises for a file that is cut short
                raise UserError(f"{path} holds no {self._name}; encode the clips again")
            with readable(path):
                self._files[path] = safe_open(path, framework="pt")
        return self._files[path].get_slice(self._name)

    def __len__(self) -> int:
        """Number of clips in all shards together."""
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the whole column would have as one tensor."""
        return len(self), *self._open(self._places[0][0]).get_shape()[1:]

    def __getitem__(self, clips: Any) -> Tensor:
        """The tensors of `clips` [n] (int64): [n, ...]."""
        places = [self._places[int(clip)] for clip in clips]
        return torch.stack([self._open(path)[row] for path, row in places])
