"""LoRA files: low-rank changes to linear layers, added to their weights when these are read.

W becomes W + strength * alpha / r * up @ down. Names are those of peft, of diffusers, of ComfyUI and
kohya-ss; the layers' own names are Wan's or diffusers'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.weights.formats.files import LISTED, refuse_not_finite
from vmla.weights.formats.open_file import open_file
from vmla.weights.formats.pickles import LORA_PART
from vmla.weights.formats.prefixes import WRAPPERS
from vmla.weights.key_mapping import to_diffusers, to_wan

ENDS = {
    "down": re.compile(r"\.(lora_A(\.default)?|lora_down|lora\.down)\.weight$"),
    "up": re.compile(r"\.(lora_B(\.default)?|lora_up|lora\.up)\.weight$"),
    "alpha": re.compile(r"\.alpha$"),
}
PARTS = 8
"""Parts that a layer's name has at most: `blocks.0.attn1.to_out.0` has five."""
UNDERSCORED = "lora_unet_"
"""Prefix of kohya-ss's names, in which underscores replace the dots."""


@dataclass(frozen=True)
class Lora:
    """The changes of one LoRA file, by our names of the weights."""

    path: Path
    tensors: Mapping[str, Tensor]
    pairs: Mapping[str, Mapping[str, str]]
    """For each weight, the names of its `down`, `up` and perhaps `alpha`."""
    strength: float
    alpha: float | None
    """alpha of all layers, where the file has none for each; None means the rank, a factor of 1."""

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The float32 weight [out, in] with the adapter's change added, or unchanged if it has none.

        Raises:
            UserError: if the change has another shape, or it or its result is not finite.
        """
        pair = self.pairs.get(name)
        if pair is None:
            return weight
        down, up = (self._finite(pair[half]) for half in ("down", "up"))
        down, up = (half.flatten(1) if half.ndim > 2 else half for half in (down, up))  # 1 x 1 convolutions
        rank = down.shape[0] if down.ndim else 0
        if not rank or up.shape != (weight.shape[0], rank) or down.shape != (rank, weight.shape[1]):
            shapes = f"{list(up.shape)} times {list(down.shape)}"
            raise UserError(f"{self.path}: {pair['up']} is {shapes}; its layer is {list(weight.shape)}")
        changed = weight + self.strength * self._alpha_of(pair, rank) / rank * (up @ down)
        refuse_not_finite(f"{name} with {pair['up']}", changed, self.path)
        return changed

    def _alpha_of(self, pair: Mapping[str, str], rank: int) -> float:
        if "alpha" not in pair:
            return rank if self.alpha is None else self.alpha
        alpha = self._finite(pair["alpha"])
        if alpha.numel() != 1:
            raise UserError(f"{self.path}: {pair['alpha']} is {list(alpha.shape)}, not one number")
        return float(alpha)

    def _finite(self, name: str) -> Tensor:
        held = self.tensors[name]
        if not (held.is_floating_point() or held.numel() == 1) or held.is_complex():
            kind = str(held.dtype).removeprefix("torch.")
            raise UserError(f"{self.path}: {name} holds codes ({kind}); give weights in 16 bits")
        tensor = held.to(torch.float32)
        refuse_not_finite(name, tensor, self.path)
        return tensor


def open_lora(path: Path, weights: Iterable[str], strength: float = 1.0) -> Lora:
    """Open a LoRA file for a model whose weights have these of our names.

    Args:
        path: safetensors, or a file of `torch.save`; peft's `adapter_config.json` beside it is read.
        weights: all that may be changed.
        strength: 1 as it was trained; less for less of it, negative for its opposite.

    Raises:
        UserError: for a tensor that belongs to no layer of the model, a pair of which half is missing, or a
            strength that is not a number.
    """
    if not math.isfinite(strength):
        raise UserError(f"the strength of {path} is {strength}; use a number, 1 as it was trained")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the LoRA file in it")
    tensors = open_file(path, LORA_PART).tensors
    layers, pairs = _layers(weights), dict[str, dict[str, str]]()
    strange = []
    for name in tensors:
        half, module = _split(WRAPPERS.sub("", name))
        layer = next((layers[m] for m in _tails(module) if m in layers), None)
        if half is None or layer is None:
            strange.append(name)
        else:
            pairs.setdefault(layer, {})[half] = name
    if strange or not pairs:
        more = f" and {len(strange) - LISTED} others" if len(strange) > LISTED else ""
        listed = ", ".join(strange[:LISTED]) or "nothing"
        raise UserError(f"{path} has {listed}{more}, which is no LoRA of a linear layer of this model")
    for layer, pair in pairs.items():
        if missing := {"down", "up"} - pair.keys():
            raise UserError(f"{path} lacks the {missing.pop()} matrix of {layer}; copy it again")
    return Lora(path, tensors, pairs, strength, _alpha(path))


def _layers(weights: Iterable[str]) -> dict[str, str]:
    """Our weights by all names that a file may have for their layers."""
    found = {}
    for weight in weights:
        for name in (weight, to_wan(weight), to_diffusers(weight)):
            module = name.removesuffix(".weight")
            found[module] = weight
            found[UNDERSCORED + module.replace(".", "_")] = weight
    return found


def _split(name: str) -> tuple[str | None, str]:
    """Which half of a pair a tensor is, and the name of the layer that the pair changes."""
    for half, end in ENDS.items():
        if end.search(name):
            return half, end.sub("", name)
    return None, name


def _tails(module: str) -> Iterator[str]:
    """The last parts of the name, the longest first; no layer's name has more than `PARTS`."""
    parts = module.split(".")[-PARTS:]
    yield from (".".join(parts[start:]) for start in range(len(parts)))


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The fields that we read of peft's `adapter_config.json`."""

    lora_alpha: float | None = None


def _alpha(path: Path) -> float | None:
    beside = path.with_name("adapter_config.json")
    if not beside.is_file():
        return None
    return typed(read_json(beside), AdapterConfig, str(beside), others="ignore").lora_alpha
