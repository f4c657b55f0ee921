"""Finds the transformer's tensors in a file, under any prefix and beside other models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError

WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
"""Parts that FSDP, activation checkpointing and torch.compile insert into names."""
PREFIXES = (
    "model.", "module.", "diffusion_model.", "generator.", "net.", "dit.", "transformer.", "pipe.",
)  # fmt: skip
"""Prefixes that trainers and pipelines put before all names."""
ANCHORS = ("time_projection.1.weight", "condition_embedder.time_proj.weight")
"""A tensor that every Wan transformer has once, by Wan's name and by diffusers'."""
OWN = {
    "blocks", "patch_embedding", "text_embedding", "time_embedding", "time_projection", "head",
    "condition_embedder", "scale_shift_table", "proj_out", "position_embedding",
    "img_emb", "vace_blocks", "vace_patch_embedding",
}  # fmt: skip
"""First parts of names in Wan's transformers and their relatives."""
OTHERS = {
    "vae", "first_stage_model", "text_encoder", "text_encoders", "cond_stage_model", "conditioner", "clip",
    "t5", "critic", "fake_score", "real_score", "generator_ema", "generator", "optimizer",
}  # fmt: skip
"""First parts of names in other models that may lie in the same file."""
BLOCK = re.compile(r"(^|\.)blocks\.\d+\.")


@dataclass(frozen=True)
class Names:
    """The transformer's names, bare, each with that in the file; and the names of tensors beside it."""

    own: dict[str, str]
    beside: tuple[str, ...]


def names_of(names: Iterable[str], path: Path, part: str | None = None) -> Names:
    """Tell the transformer's tensors from those that are clearly not its own.

    Args:
        names: as in the file.
        path: of the file, for errors.
        part: of several transformers in a file, the one whose prefix holds this.

    Raises:
        UserError: for several transformers, or a block that does not lie with the others.
    """
    bare = {WRAPPERS.sub("", name): name for name in names}
    prefix = _prefix(bare, path, part)
    if prefix is None:
        return Names(stripped(bare.values()), ())
    own, beside = {}, []
    for name, original in bare.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner.split(".")[0] in OWN:
            own[inner] = original
        elif name.split(".")[0] in OTHERS or not BLOCK.search(name):
            beside.append(original)
        else:
            raise UserError(f"{path}: {original} lies beside the transformer {prefix}blocks; take it out")
    return Names(own, tuple(beside))


def _prefix(names: Iterable[str], path: Path, part: str | None) -> str | None:
    """The prefix of the transformer's names, None if the file holds no transformer of Wan's."""
    found = {
        name.removesuffix(anchor)
        for name in names
        for anchor in ANCHORS
        if name == anchor or name.endswith("." + anchor)
    }
    fitting = sorted(prefix for prefix in found if part is None or part in prefix.split("."))
    if part is not None and len(found) == 1:
        fitting = sorted(found)  # the part was a level of its own, and is opened already
    if len(fitting) > 1:
        raise UserError(f"{path} holds several transformers ({', '.join(fitting)}); choose with --part")
    return fitting[0] if fitting else None


def stripped(names: Iterable[str]) -> dict[str, str]:
    """Names without the prefixes of wrappers and trainers, each with its name in the file."""
    bare = {WRAPPERS.sub("", name): name for name in names}
    while bare:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in bare)), None)
        if prefix is None:
            break
        bare = {name.removeprefix(prefix): original for name, original in bare.items()}
    return bare
