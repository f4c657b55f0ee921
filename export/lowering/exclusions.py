"""Which linear layers an fp8 or nvfp4 program leaves in its base precision, and why: the one place.

Measured on the first sprites model, as the error that fp8 makes in one pass's velocity (and entries): with
the layers below left out 2.4 % (0.8 %), with none left out 6.2 % (1.9 %); the layers at the ends alone add
0.9 points, those that make what is cached 0.6.
"""

from __future__ import annotations

import re
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
"""Reasons by layer, as a pattern of its name; the first that fits counts."""

AT_THE_ENDS = "in the first or last blocks, whose errors reach the picture most directly"

WIDTHS = 16
"""What the widths of a layer must divide by: tensor cores, and the blocks of nvfp4."""

UNEVEN = f"its widths do not divide by {WIDTHS}"


def reason_to_exclude(layer: str, shape: Sequence[int], blocks: int) -> str | None:
    """Why the layer called `layer`, a matrix of `shape`, is not quantised; None if it is.

    Args:
        layer: its name in the model, as `blocks.3.ffn.up`.
        shape: outputs and inputs.
        blocks: of the whole model.
    """
    for pattern, reason in EXCLUDED.items():
        if fnmatchcase(layer, pattern):
            return reason
    edge, block = ends(blocks), re.match(r"blocks\.(\d{1,9})\.", layer)
    if block is None or not edge <= int(block[1]) < blocks - edge:
        return AT_THE_ENDS
    return UNEVEN if any(width % WIDTHS for width in shape) else None


def ends(blocks: int) -> int:
    """How many blocks at either end stay as they are: 3 in 40, as in ModelOpt's preset for Wan.

    At least one, but none of a model that would have no others.
    """
    return max(1, round(blocks * 3 / 40)) if blocks > 2 else 0
