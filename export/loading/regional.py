"""Runs programs in parts, as `export.lowering.regional` makes them, with the weights of their layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.engine.signature import BEGIN, END, LAYER, PROMPT, STEP
from vmla.weights.formats.files import read_tensors

Program = Callable[..., Sequence[Tensor]]
"""The type `export.backends.base.Program`, repeated here because backends import this module."""
Layers = Sequence[Sequence[Tensor]]
"""The weights of each layer, in the order in which its program takes them."""


class RegionalStep:
    """The step: a part before the layers, one program for all layers, a part after them."""

    def __init__(self, parts: Mapping[str, Program], layers: Layers) -> None:
        self._begin, self._layer, self._end = parts[BEGIN], parts[LAYER], parts[END]
        self._layers = layers

    def __call__(
        self, latents: Tensor, timestep: Tensor, text_kv: Tensor, cache: Tensor, slot_index: Tensor,
        chunk_index: Tensor,
    ) -> Sequence[Tensor]:  # fmt: skip
        """Velocity and entries, as the whole program returns them."""
        begun = self._begin(latents, timestep, slot_index, chunk_index)
        tokens, embedding, modulation, *window = (tensor.contiguous() for tensor in begun)
        entries = []
        for number, weights in enumerate(self._layers):
            own = text_kv[number], cache[number]
            after, made = self._layer(tokens, modulation, *own, *window, *weights)
            tokens = after.contiguous()
            entries.append(made)
        (velocity,) = self._end(tokens, embedding)
        return velocity, torch.stack(entries)


class RegionalPrompt:
    """The prompt step: the text's embedding, then the keys and values of each layer."""

    def __init__(self, parts: Mapping[str, Program], layers: Layers) -> None:
        self._begin, self._layer, self._layers = parts[BEGIN], parts[LAYER], layers

    def __call__(self, text: Tensor) -> Sequence[Tensor]:
        """Keys and values of all layers, as the whole program returns them."""
        (embedded,) = self._begin(text)
        embedded = embedded.contiguous()
        made = [self._layer(embedded, *weights)[0] for weights in self._layers]
        return (torch.stack(made),)


RUN: dict[str, Callable[[Mapping[str, Program], Layers], Program]] = {
    STEP: RegionalStep,
    PROMPT: RegionalPrompt,
}
"""What runs a program in parts, by the program's name."""


def read_layers(path: Path, device: str) -> Layers:
    """The weights of each layer in a file whose names are those of `export.lowering.regional.Regional`.

    Raises:
        UserError: if the file is missing or cut short.
    """
    weights = read_tensors(path)
    layers: defaultdict[int, list[Tensor]] = defaultdict(list)
    for name in sorted(weights):
        layers[int(name.partition(".")[0])].append(weights[name].to(device))
    return [layers[number] for number in sorted(layers)]
