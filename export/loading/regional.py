"""Runs programs in parts, as `export.lowering.regional` makes them, with the weights of their layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.engine.signature import BEGIN, END, PROMPT, STEP
from vmla.weights.formats.files import read_tensors

Program = Callable[..., Sequence[Tensor]]
"""The type `export.backends.base.Program`, repeated here because backends import this module."""
Layers = Sequence[tuple[str, Sequence[Tensor]]]
"""For each layer the part that runs it, and its weights in the order in which that part takes them."""


class RegionalStep:
    """The step: a part before the layers, one program or two for all layers, a part after them."""

    def __init__(self, parts: Mapping[str, Program], layers: Layers) -> None:
        self._begin, self._end = parts[BEGIN], parts[END]
        self._layers = [(parts[part], weights) for part, weights in layers]

    def __call__(
        self, latents: Tensor, timestep: Tensor, text_kv: Tensor, cache: Tensor, slot_index: Tensor,
        chunk_index: Tensor,
    ) -> Sequence[Tensor]:  # fmt: skip
        """Velocity and entries, as the whole program returns them."""
        begun = self._begin(latents, timestep, slot_index, chunk_index)
        tokens, embedding, modulation, *window = (tensor.contiguous() for tensor in begun)
        entries = []
        for number, (layer, weights) in enumerate(self._layers):
            own = text_kv[number], cache[number]
            after, made = layer(tokens, modulation, *own, *window, *weights)
            tokens = after.contiguous()
            entries.append(made)
        (velocity,) = self._end(tokens, embedding)
        return velocity, torch.stack(entries)


class RegionalPrompt:
    """The prompt step: the text's embedding, then the keys and values of each layer."""

    def __init__(self, parts: Mapping[str, Program], layers: Layers) -> None:
        self._begin = parts[BEGIN]
        self._layers = [(parts[part], weights) for part, weights in layers]

    def __call__(self, text: Tensor) -> Sequence[Tensor]:
        """Keys and values of all layers, as the whole program returns them."""
        (embedded,) = self._begin(text)
        embedded = embedded.contiguous()
        made = [layer(embedded, *weights)[0] for layer, weights in self._layers]
        return (torch.stack(made),)


RUN: dict[str, Callable[[Mapping[str, Program], Layers], Program]] = {
    STEP: RegionalStep,
    PROMPT: RegionalPrompt,
}
"""What runs a program in parts, by the program's name."""


def read_layers(path: Path, device: str, parts: Sequence[str]) -> Layers:
    """The weights of each layer in a file whose names are those of `export.lowering.regional.Regional`.

    Args:
        path: of the file.
        device: where the weights go.
        parts: the part that runs each layer.

    Raises:
        UserError: if the file is missing or cut short.
    """
    weights = read_tensors(path)
    layers: defaultdict[int, list[Tensor]] = defaultdict(list)
    for name in sorted(weights):
        layers[int(name.partition(".")[0])].append(weights[name].to(device))
    return [(part, layers[number]) for number, part in enumerate(parts)]
