"""Which files of a folder hold a model's weights: one or several, plain or of a variant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from vmla.weights.formats.files import shards_named

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Stems of weight files, as diffusers and transformers name them."""
KINDS = (".safetensors", ".bin")
"""Kinds of weight files, in the order of preference."""
NAME = re.compile(
    r"(?P<stem>{})(\.(?P<variant>\w+))?(?P<kind>\.safetensors|\.bin)"
    r"(?P<index>\.index(\.(?P<of>\w+))?\.json)?".format("|".join(STEMS))
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that together hold a model's weights."""

    path: Path
    """The one file, or the index of several."""
    files: tuple[Path, ...]
    kind: str
    """Suffix of the files, one of `KINDS`; an index has the kind of its shards."""
    variant: str | None
    """The variant, such as `fp16`; None for plain weights."""


def weights_in(folder: Path, variant: str | None = None) -> WeightFiles:
    """The weights in `folder`, plain ones unless a `variant` is named or there are no others.

    Raises:
        UserError: if there are none, none of that variant, or several variants and none plain.
    """
    found = [made for path in sorted(folder.iterdir()) if (made := _weights(path)) is not None]
    variants = sorted({made.variant for made in found if made.variant is not None})
    if variant is None and not any(made.variant is None for made in found):
        if len(variants) > 1:
            raise UserError(f"{folder} has weights of {' and '.join(variants)}; choose one with --variant")
        variant = variants[0] if variants else None
    fitting = [made for made in found if made.variant == variant]
    if not fitting:
        there = f"its variants are {', '.join(variants)}" if variants else "copy the whole checkpoint folder"
        wanted = f"weights of variant {variant}" if variant else " or ".join(s + KINDS[0] for s in STEMS[:2])
        raise UserError(f"{folder} lacks {wanted}; {there}")
    return min(fitting, key=lambda made: (KINDS.index(made.kind), made.path.suffix != ".json"))


def _weights(path: Path) -> WeightFiles | None:
    """The contents of a file by its name; None if it is neither a file of weights nor an index."""
    named = NAME.fullmatch(path.name)
    if named is None or not path.is_file():
        return None
    variant = named["variant"] or named["of"]
    files = tuple(shards_named(path)) if named["index"] else (path,)
    return WeightFiles(path, files, named["kind"], variant)
