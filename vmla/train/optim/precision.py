"""In which type a stage computes from its float32 weights: bfloat16, or float32 where that is faster.

A processor without matrix instructions for bfloat16 converts every number before it multiplies, and can take
many times as long as in float32. Which of the two is faster is measured, for no list of instructions says it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]
"""What a recipe asks for; `auto` leaves the choice to the machine, and may differ when a run goes on."""

TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPE = 2048, 256, 1024
"""Rows, inputs and outputs of the product that is timed: a feed-forward layer of the `sprites` model."""
ROUNDS = 10
"""Of both types in turns. The shortest counts: other work on the machine can only make a product longer."""


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
        precision: what its settings ask for.
        device: where its weights are.
        measure: gives the seconds of a typical product in a type, on a CPU.

    Returns:
        What is asked for; for `auto` bfloat16 on a GPU and the faster type on a CPU. Processes that train
        together all take that of the first one, for they exchange weights in it, and must all call this.
    """
    if precision != "auto":
        return TYPES[precision]
    if device.type != "cpu":
        return torch.bfloat16
    return _of_the_first(_fastest(measure, torch.get_num_threads()))


@cache
def _fastest(measure: Callable[[torch.dtype], float], threads: int) -> torch.dtype:
    """Measured once by a process; `threads` is what the speed of a CPU depends on."""
    with torch.inference_mode():
        rounds = [{dtype: measure(dtype) for dtype in TYPES.values()} for _ in range(ROUNDS)]
    return min(TYPES.values(), key=lambda dtype: min(seconds[dtype] for seconds in rounds))


def _of_the_first(dtype: torch.dtype) -> torch.dtype:
    """What the first of several processes has."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return dtype
    shared = [dtype]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
