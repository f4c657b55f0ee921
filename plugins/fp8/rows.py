"""float8_e4m3fn codes with a scale for each row, found from the row itself.

Plain operations on whole rows: inside `torch.compile` they become part of the kernel that makes the rows (a
norm with its modulation, a GELU), whose reduction runs over the same axis, so quantising costs no pass over
memory of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""The largest number of float8_e4m3fn, 448."""
LEAST_SCALE = 2.0**-40
"""Least scale of a row, so that a row of zeros can be divided by its scale."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., K] float8_e4m3fn and scales [..., 1] float32 of x [..., K] in any floating-point type.

    The largest magnitude of a row becomes 448, so nothing saturates; a row that is not finite becomes NaN.
    """
    wide = x.float()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    # PyTorch's cast of values beyond 448 depends on version and device, and division may round up to there.
    return (wide / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales
