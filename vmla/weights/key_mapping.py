"""Names of tensors in other people's files: one table for each convention, read in both directions.

Wan's own names are those of its release; diffusers' differ from ours in three places. A file of a
VideoMLA model is Wan's outside self-attention; its author's names of the latent projections are
told by a small JSON file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError

LATENT = {
    "down_kv": "kv_down", "norm_kv": "kv_norm", "up_k": "k_up", "up_v": "v_up", "rotary_k": "k_rope",
    "down_q": "q_down", "norm_q": "q_norm", "up_q": "q_up", "rotary_q": "q_rope", "to_out": "o",
}  # fmt: skip
"""Our latent attention's modules, and the default of their names in a file."""

OUTER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
PROJECTIONS = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
INNER = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",
    "ffn.up": "ffn.0",
    "ffn.down": "ffn.2",
    **{f"attn1.{ours}": f"self_attn.{wan}" for ours, wan in PROJECTIONS.items()},
    **{f"attn2.{ours}": f"cross_attn.{wan}" for ours, wan in PROJECTIONS.items()},
}
DIFFUSERS_INNER = {
    "ffn.up": "ffn.net.0.proj",
    "ffn.down": "ffn.net.2",
    "attn1.to_out": "attn1.to_out.0",
    "attn2.to_out": "attn2.to_out.0",
}
"""Names within a block that diffusers writes otherwise than we do; all others are the same."""


def to_wan(name: str, latent: Mapping[str, str] | None = None) -> str:
    """Our name as Wan's release writes it; `latent` names the modules of latent attention."""
    inner = {**INNER, **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in (latent or {}).items()}}
    return _translated(name, OUTER, inner)


def to_diffusers(name: str) -> str:
    """Our name as diffusers' `WanTransformer3DModel` writes it."""
    return _translated(name, {}, DIFFUSERS_INNER)


def _translated(name: str, outer: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """`name` with its module's name replaced; a name that is in no table stays."""
    within = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    prefix, rest = within.groups() if within else ("", name)
    table = inner if within else outer
    module, dot, leaf = rest.rpartition(".")
    if rest in table:  # a parameter of the block itself
        return prefix + table[rest]
    return prefix + table.get(module, module) + dot + leaf


def read_mapping(path: Path) -> dict[str, str]:
    """The mapping of a VideoMLA file: a JSON object from our modules to theirs, all or some of `LATENT`.

    Raises:
        UserError: for a module that latent attention does not have, or a name that is not a string.
    """
    mapping = typed(read_json(path), dict[str, str], str(path))
    if unknown := sorted(mapping.keys() - LATENT.keys()):
        raise UserError(
            f"{path} maps {unknown[0]}, which latent attention does not have; it has {', '.join(LATENT)}"
        )
    return {**LATENT, **mapping}
