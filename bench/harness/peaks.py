"""The measured limits of this machine: its matrix and copy peaks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.harness.paired_timing import Clock, DeviceClock, WallClock
from plugins.fp8.product import FAST_ACCUMULATION
from plugins.fp8.product import scaled_product as product_of_codes
from plugins.fp8.rows import quantize_rows

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT8 = "fp8"
WARM_UP = 3
"""Calls before the timed ones: the first ones choose and load kernels and allocate memory."""
SIDES = {"cpu": 2048, "cuda": 8192}
"""Sides of the square products that give the peak: large enough to keep all of a device's units busy."""
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes that are copied, far more than any cache holds."""


@dataclass(frozen=True)
class Rate:
    """Samples of one timed call, and the work that each call does."""

    work: float
    """Operations or bytes of one call."""
    samples_ms: list[float]

    @property
    def per_second(self) -> float:
        """Operations or bytes per second in the median sample."""
        return self.work / statistics.median(self.samples_ms) * 1e3

    def as_dict(self) -> dict[str, Any]:
        """The figures as a results document holds them."""
        return {"per_second": self.per_second, "work": self.work, "samples_ms": self.samples_ms}


def clock_for(device: torch.device) -> Clock:
    """Events with cold caches on a GPU, the wall elsewhere."""
    return DeviceClock() if device.type == "cuda" else WallClock()


def measured(call: Callable[[], object], work: float, clock: Clock, rounds: int) -> Rate:
    """`call` timed `rounds` times after a warm-up."""
    for _ in range(WARM_UP):
        call()
    return Rate(work, [clock.time(call) for _ in range(rounds)])


def product(
    precision: str, m: int, n: int, k: int, *, clock: Clock, device: torch.device, rounds: int = 10
) -> Rate:
    """The matrix product [m, k] x [k, n] on random data, both operands contiguous along k."""
    a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    if precision == FLOAT8:
        call = scaled_product(a, b)
    else:
        x, y = a.to(TYPES[precision]), b.to(TYPES[precision]).t()
        call = lambda: x @ y  # noqa: E731
    return measured(call, 2.0 * m * n * k, clock, rounds)


def scaled_product(
    a: torch.Tensor, b: torch.Tensor, *, fast: bool = FAST_ACCUMULATION
) -> Callable[[], torch.Tensor]:
    """a [m, k] times b [n, k] transposed in float8 e4m3, a scale for each row of both, into bfloat16."""
    (x, left), (y, right) = quantize_rows(a), quantize_rows(b)
    return lambda: product_of_codes(x, left, y, right.flatten(), fast=fast)


def copy(count: int, *, clock: Clock, device: torch.device, rounds: int = 10) -> Rate:
    """Copying `count` bytes: each is read once and written once."""
    source, target = (torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    return measured(lambda: target.copy_(source), 2.0 * count, clock, rounds)


def machine_peaks(device: torch.device, precisions: tuple[str, ...], *, rounds: int = 10) -> dict[str, Any]:
    """Peaks of large square products in each precision, and of a large copy."""
    clock, side = clock_for(device), SIDES[device.type]
    with torch.inference_mode():
        products = {
            name: product(name, side, side, side, clock=clock, device=device, rounds=rounds).as_dict()
            for name in precisions
        }
        copied = copy(COPIED[device.type], clock=clock, device=device, rounds=rounds).as_dict()
    return {"size": side, "matrix": products, "copy": copied}
