"""The two conventions for classifier-free guidance; a weight of one is not a weight of the other.

`guided` with weight w is `guided_beyond` with weight w - 1. Consistency distillation uses the first with
3, distribution matching the second with 3, which the first would call 4.
"""

from __future__ import annotations

from torch import Tensor


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u): 1 is no guidance (classifier-free guidance as samplers state it)."""
    return unconditional + weight * (conditional - unconditional)


def guided_beyond(conditional: Tensor, unconditional: Tensor, extra: float) -> Tensor:
    """c + g (c - u): 0 is no guidance (DMD's real score, arXiv 2405.14867)."""
    return conditional + extra * (conditional - unconditional)
