"""A file's latent attention under our names, cut from its tensors as a mapping says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.weights.formats.files import LISTED, Shape
from vmla.weights.formats.lazy_tensors import shape_of
from vmla.weights.inspection.mapping import LatentMap, TensorSlice

Translate = Callable[[str], str]


class MappedTensors(Mapping[str, Tensor]):
    """Tensors under bare names; those of attention are cut when they are asked for."""

    def __init__(
        self, tensors: Mapping[str, Tensor], mapping: LatentMap, translate: Translate, path: Path
    ) -> None:
        """Check that every tensor of attention and every row of it is used once.

        Args:
            tensors: of the file, under bare names.
            mapping: names rows of `tensors`.
            translate: our name to the one that the result has it under.
            path: of the file, for errors.

        Raises:
            UserError: naming tensors that are left over, used twice or missing.
        """
        self._tensors, self._heads = tensors, mapping.heads
        layers = _layers(tensors, mapping)
        if not layers:
            raise UserError(f"{path} has no tensor named {mapping.attention}...; mend attention")
        self._cuts: dict[str, tuple[str | None, TensorSlice]] = {}
        used: set[str] = set()
        for layer in layers:
            prefix = mapping.attention.format(layer=layer)
            for target, cut in mapping.parts.items():
                name = None if cut.tensor is None else prefix + cut.tensor
                self._cuts[translate(f"blocks.{layer}.attn1.{target}")] = name, cut
            own = {name for name in tensors if name.startswith(prefix)}
            _check_all_used(own, prefix, mapping, path)
            used |= own
        _check_rows(tensors, mapping, mapping.attention.format(layer=layers[0]), path)
        self._width = shape_of(tensors, "patch_embedding.weight")[0]
        self._plain = [name for name in tensors if name not in used]

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, or cut it from the one that holds it."""
        if name not in self._cuts:
            return self._tensors[name]
        original, cut = self._cuts[name]
        if original is None:
            return torch.zeros(self._width)
        tensor = self._tensors[original]
        if tensor.ndim > 2:
            tensor = tensor.flatten(0, -2)
        if cut.transposed:
            tensor = tensor.T
        return tensor[_indices(len(tensor), cut, self._heads)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over our names of all tensors, without the file's prefix."""
        return iter([*self._plain, *self._cuts])

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._plain) + len(self._cuts)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor; nothing is read."""
        if name not in self._cuts:
            return shape_of(self._tensors, name)
        original, cut = self._cuts[name]
        if original is None:
            return (self._width,)
        rows, *rest = _flat(shape_of(self._tensors, original), cut)
        return len(_indices(rows, cut, self._heads)), *rest


def _layers(tensors: Mapping[str, Tensor], mapping: LatentMap) -> list[int]:
    before, after = (re.escape(half) for half in mapping.attention.split("{layer}", 1))
    found = (re.match(rf"{before}(\d+){after}", name) for name in tensors)
    return sorted({int(match[1]) for match in found if match is not None})


def _flat(shape: Shape, cut: TensorSlice) -> Shape:
    """The tensor as a matrix, outputs first."""
    if len(shape) > 2:
        shape = torch.Size(shape[:-1]).numel(), shape[-1]
    return shape[::-1] if cut.transposed else shape


def _indices(rows: int, cut: TensorSlice, heads: int) -> Tensor:
    """The rows of the tensor that a cut takes, in our order [rows of the result]."""
    index = torch.arange(rows).view(heads if cut.per_head else 1, -1)
    if cut.rows is not None:
        index = index[:, cut.rows[0] : cut.rows[1]]
    if cut.pairs == "halved":  # (x0, x1, ..., y0, y1, ...) to (x0, y0, x1, y1, ...)
        if index.shape[1] % 2:
            raise UserError(f"{index.shape[1]} rows of {cut.tensor} are no pairs; mend rows in the mapping")
        index = index.reshape(len(index), 2, -1).transpose(1, 2)
    return index.flatten()


def _check_all_used(own: set[str], prefix: str, mapping: LatentMap, path: Path) -> None:
    taken = {prefix + cut.tensor for cut in mapping.parts.values() if cut.tensor is not None}
    if missing := sorted(taken - own):
        raise UserError(f"{path} has no tensor {missing[0]}; mend the mapping")
    left = sorted(own - taken - {prefix + name for name in mapping.ignore})
    if left:
        more = f" and {len(left) - LISTED} others" if len(left) > LISTED else ""
        listed = ", ".join(left[:LISTED])
        raise UserError(f"{path}: the mapping leaves over {listed}{more}; map it, or name it under ignore")


def _check_rows(tensors: Mapping[str, Tensor], mapping: LatentMap, prefix: str, path: Path) -> None:
    """Every row of every tensor is taken once; of the first layer, as all are alike."""
    for name in sorted({cut.tensor for cut in mapping.parts.values() if cut.tensor is not None}):
        cuts = [cut for cut in mapping.parts.values() if cut.tensor == name]
        rows = _flat(shape_of(tensors, prefix + name), cuts[0])[0]
        if any(cut.per_head and rows % mapping.heads for cut in cuts):
            raise UserError(f"{path}: the {rows} rows of {name} are not {mapping.heads} heads; mend heads")
        taken = torch.cat([_indices(rows, cut, mapping.heads) for cut in cuts])
        counts = torch.bincount(taken, minlength=rows)
        for count, fault in ((0, "leaves over"), (2, "takes twice")):
            wrong = (counts == 0 if count == 0 else counts > 1).nonzero().flatten()
            if len(wrong):
                where = f"{len(wrong)} rows of {name}, from row {int(wrong[0])}"
                raise UserError(f"{path}: the mapping {fault} {where}; mend rows")
