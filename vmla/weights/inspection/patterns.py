"""The tensors of a file by pattern and shape, and the kind of file that they indicate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vmla.weights.formats.files import Shape
from vmla.weights.formats.lazy_tensors import shape_of
from vmla.weights.formats.open_file import LORA
from vmla.weights.formats.prefixes import names_of
from vmla.weights.inspection.conventions import ATTENTIONS
from vmla.weights.inspection.propose import has_heads

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
KINDS = {
    "Wan's codec, as diffusers has it": ("decoder.up_blocks.", "decoder.mid_block."),
    "Wan's codec, as its release has it": ("decoder.upsamples.", "decoder.middle."),
    "a text encoder (UMT5 of transformers)": ("encoder.block.", "shared.weight"),
    "a text encoder (T5 of Wan's release)": ("token_embedding.weight", "blocks.N.ffn.gate."),
    "an autoencoder of TAEHV's kind": ("decoder.1.weight", "encoder.0.weight"),
}
"""Kinds of models, by beginnings of names that only they have, all of which must be there."""


@dataclass(frozen=True)
class Pattern:
    """Tensors whose names differ in numbers alone."""

    name: str
    """With N for each number."""
    shapes: tuple[Shape, ...]
    count: int

    def __str__(self) -> str:
        """The pattern as a line of a listing."""
        shapes = " or ".join(str(list(shape)) for shape in self.shapes)
        return f"{self.count:>5} x {self.name} {shapes}"


def patterns_of(tensors: Mapping[str, Tensor]) -> list[Pattern]:
    """All tensors, grouped; in the order of the file."""
    found: dict[str, list[Shape]] = {}
    for name in tensors:
        found.setdefault(NUMBER.sub("N", name), []).append(shape_of(tensors, name))
    return [Pattern(name, tuple(dict.fromkeys(shapes)), len(shapes)) for name, shapes in found.items()]


def kind_of(names: Iterable[str], path: Path, part: str | None = None) -> str:
    """The kind of a file with tensors of these names, in a sentence.

    Raises:
        UserError: as `names_of`.
    """
    listed = list(names)
    if any(sign in name for name in listed for sign in LORA):
        return "LoRA weights: changes to a model, for --lora"
    own = names_of(listed, path, part).own
    if "time_projection.1.weight" in own or "condition_embedder.time_proj.weight" in own:
        return _transformer(own)
    patterns = [NUMBER.sub("N", name) for name in own]
    for kind, signs in KINDS.items():
        if all(any(name.startswith(sign) for name in patterns) for sign in signs):
            return f"{kind}, not a transformer"
    return "nothing that is known here"


def _transformer(own: Mapping[str, str]) -> str:
    style = "Wan's own names" if "time_projection.1.weight" in own else "diffusers' names"
    layers = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
    inner = {
        name.removeprefix(f"blocks.0.{a}.") for a in ATTENTIONS for name in own if f"blocks.0.{a}." in name
    }
    attention = "attention per head" if has_heads(inner) else "latent attention"
    return f"a Wan transformer of {layers} layers under {style}, with {attention}"
