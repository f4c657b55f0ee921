"""The one place that says which linear layers fp8 and nvfp4 leave in the base precision, and why.

Measured on the first sprites model, as the error of fp8 in one pass's velocity (and entries): 2.4 % (0.8 %)
with the layers below left out, 6.2 % (1.9 %) with none left out. Of that, the layers at the ends add 0.9
points and those that produce cache entries 0.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

EXCLUDED = {
    "patch_embedding": "reads the noisy latents themselves, at a thousandth of the cost",
    "proj_out": "makes the velocity itself, at a thousandth of the cost",
    "condition_embedder.time_*": "modulates every layer, and reads one row for each frame only",
    "condition_embedder.text_embedder.*": "runs once for each prompt, and every layer reads it",
    "blocks.*.attn2.to_[kv]": "runs once for each prompt, and every pass reads it",
    "blocks.*.attn1.rotary_[qk]": "the rotary path: an error in it is an error of position",
    "blocks.*.attn1.down_kv": "makes the cached latent: every later chunk reads its error again",
    "blocks.*.attn1.to_[kv]": "makes what is cached: every later chunk reads its error again",
    "blocks.*.attn1.up_[kv]": "its product lies inside the operator vmla::expand",
}
"""Reasons by a pattern of the layer's name; the first match counts."""

AT_THE_ENDS = "in the first or last blocks, whose errors reach the picture most directly"

WIDTHS = 16
"""A layer's widths must be multiples of this, for tensor cores and for the blocks of nvfp4."""

UNEVEN = f"its widths do not divide by {WIDTHS}"


def reason_to_exclude(layer: str, shape: Sequence[int], blocks: int) -> str | None:
    """Why the layer called `layer`, a matrix of `shape`, is not quantised; None if it is.

    Args:
        layer: its name in the model, such as `blocks.3.ffn.up`.
        shape: number of outputs and of inputs.
        blocks: number of blocks of the model.
    """
    for pattern, reason in EXCLUDED.items():
        if fnmatchcase(layer, pattern):
            return reason
    edge, place = ends(blocks), int(layer.split(".")[1])
    if not edge <= place < blocks - edge:
        return AT_THE_ENDS
    return UNEVEN if any(width % WIDTHS for width in shape) else None


def ends(blocks: int) -> int:
    """How many blocks at either end are not quantised: 3 in 40, as in ModelOpt's preset for Wan.

    At least one, but none in a model that would have no other blocks.
    """
    return max(1, round(blocks * 3 / 40)) if blocks > 2 else 0
