"""The tensors of safetensors files, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vmla.weights.formats.files import Shape, readable, shapes_in, shards_of


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files by name; headers are read at once, a tensor when it is asked for."""

    def __init__(self, path: Path, files: Sequence[Path] = ()) -> None:
        """Open `files`; where none are given `path`, or the shards that its index beside it names.

        Raises:
            UserError: if one is missing or cut short.
        """
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        self._shapes: dict[str, Shape] = {}
        for shard in files or shards_of(path):
            self._shapes |= shapes_in(shard)
            with readable(shard):
                file: Any = safe_open(shard, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor from its shard."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensors' names, shard by shard."""
        return iter(self._files)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._files)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor, from its header."""
        return self._shapes[name]


def shape_of(tensors: Mapping[str, Tensor], name: str) -> Shape:
    """The shape of tensor `name` without reading it where that is possible."""
    shape = getattr(tensors, "shape", None)
    return shape(name) if callable(shape) else tuple(tensors[name].shape)
