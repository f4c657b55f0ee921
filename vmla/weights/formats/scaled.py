"""Weights in eight bits with a scale beside each, as ComfyUI's single files have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vmla.weights.formats.files import Shape
from vmla.weights.formats.lazy_tensors import shape_of

SCALES = (".scale_weight", ".weight_scale")
"""Suffixes of a scale's name, in place of `.weight`."""
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
"""Suffixes of tensors that say nothing of a weight's value: scales of activations, notes on the coding."""


class ScaledTensors(Mapping[str, Tensor]):
    """Tensors under bare names; those that have a scale beside them are float32 and multiplied by it."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """`names` are bare names, each with that in `tensors`."""
        self._tensors, self._scales = tensors, {}
        for name, original in names.items():
            for end in SCALES:
                if name.endswith(end):
                    self._scales[name.removesuffix(end) + ".weight"] = original
        self._names = {n: o for n, o in names.items() if not n.endswith((*SCALES, *UNUSED))}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, in float32 and multiplied by its scale if it has one."""
        tensor = self._tensors[self._names[name]]
        if name not in self._scales:
            return tensor
        scale = self._tensors[self._scales[name]].to(torch.float32)
        return tensor.to(torch.float32) * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)

    def __iter__(self) -> Iterator[str]:
        """Bare names, without those of scales."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._names)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor, which a scale does not change."""
        return shape_of(self._tensors, self._names[name])
