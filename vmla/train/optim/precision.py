"""In which type a stage computes from its float32 weights: bfloat16, or float32 where that is faster.

A processor without matrix instructions for bfloat16 converts every number before it multiplies, and can take
many times as long as in float32. No list of instructions tells which of the two is faster, so it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]
"""A recipe's setting; `auto` leaves the choice to the machine, which may choose otherwise when a run is
resumed."""

TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPE = 2048, 256, 1024
"""Rows, inputs and outputs of the product that is timed: a feed-forward layer of the `sprites` model."""
ROUNDS = 10
"""Rounds of both types alternately. The shortest time counts, because other work can only make a product
slower."""


def product_seconds(dtype: torch.dtype) -> float:
    """Time one product of `SHAPE` on this CPU; it draws no random numbers."""
    rows, inputs, outputs = SHAPE
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    began = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - began


def resolve(
    precision: Precision, device: torch.device, measure: Callable[[torch.dtype], float] = product_seconds
) -> torch.dtype:
    """The type that a stage computes in on `device`.

    Args:
        precision: the precision in its settings.
        device: where its weights are.
        measure: gives the seconds of a typical product in a type, on a CPU.

    Returns:
        The precision in the settings; for `auto` bfloat16 on a GPU and the faster type on a CPU. Processes
        that train together all take that of the first one, for they exchange weights in it, and must all call
        this.
    """
    if precision != "auto":
        return TYPES[precision]
    if device.type != "cpu":
        return torch.bfloat16
    return _of_the_first(_fastest(measure, torch.get_num_threads()))


@cache
def _fastest(measure: Callable[[torch.dtype], float], threads: int) -> torch.dtype:
    """The faster type, measured once by a process and for each number of `threads`, on which it depends."""
    with torch.inference_mode():
        rounds = [{dtype: measure(dtype) for dtype in TYPES.values()} for _ in range(ROUNDS)]
    return min(TYPES.values(), key=lambda dtype: min(seconds[dtype] for seconds in rounds))


def _of_the_first(dtype: torch.dtype) -> torch.dtype:
    """The type of the first of several processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return dtype
    shared = [dtype]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
