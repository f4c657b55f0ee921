"""Comparison of tensors that says how far apart they are, and where; times of calls."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    """Fail unless |actual - expected| <= atol + rtol |expected| everywhere, in float64.

    Shapes must be equal; dtypes and devices need not be. NaN equals nothing; an infinity equals itself.

    Raises:
        AssertionError: with the largest absolute and relative error, each with its place and values.
    """
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"shapes differ: {list(actual.shape)}, not {list(expected.shape)}"
    got, want = (tensor.detach().to("cpu", torch.float64) for tensor in (actual, expected))
    error = torch.where(got == want, 0.0, (got - want).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    # Where both sides are infinite and opposite, so is the allowance; such a pair is wrong all the same.
    wrong = (error > atol + rtol * want.abs()) | (error == math.inf)
    if wrong.any():
        raise AssertionError(_report(got, want, error, wrong, f"rtol {rtol:g}, atol {atol:g}"))


def _report(got: Tensor, want: Tensor, error: Tensor, wrong: Tensor, limits: str) -> str:
    share = f"{int(wrong.sum())} of {wrong.numel()} elements differ ({limits})"
    relative = torch.where(error == 0, 0.0, error / want.abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = [_worst("absolute", error, got, want), _worst("relative", relative, got, want)]
    return "\n  ".join([share, *worst])


def _worst(name: str, error: Tensor, got: Tensor, want: Tensor) -> str:
    place = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    values = f"{got[place]:.6g}, not {want[place]:.6g}"
    return f"largest {name} error {error[place]:.3g} at {list(place)}: {values}"


def assert_relative(actual: Tensor, expected: Tensor, limit: float) -> None:
    """Fail unless the largest |actual - expected| is at most `limit` times the largest |expected|.

    For results of narrow arithmetic, whose small elements carry the error of the large ones.

    Raises:
        AssertionError: first the places that are not finite on one side only, then the worst place,
            then the cosine of the whole.
    """
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"shapes differ: {list(actual.shape)}, not {list(expected.shape)}"
    got, want = (tensor.detach().to("cpu", torch.float64) for tensor in (actual, expected))
    strange = (got.isfinite() != want.isfinite()).nonzero()
    if len(strange):
        first = ", ".join(str(place) for place in strange[:4].tolist())
        raise AssertionError(f"{len(strange)} of {got.numel()} elements are not finite, the first at {first}")
    error = (got - want).abs().nan_to_num(nan=0.0)
    share = float(error.max() / want.abs().nan_to_num(nan=0.0, posinf=0.0).max())
    if not share <= limit:
        cosine = torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0)
        worst = _worst("absolute", error, got, want)
        parts = [f"relative error {share:.3g} exceeds {limit:g}", worst, f"cosine {cosine:.6f}"]
        raise AssertionError("\n  ".join(parts))


def seconds(call: Callable[[], object], *, attempts: int = 3) -> float:
    """The least processor time of the calling thread that `call` takes, in seconds.

    Of several attempts, because a machine is busy with other things, and without garbage collection, whose
    time depends on what all tests before have left in memory.
    """
    taken = []
    for _ in range(attempts):
        gc.disable()
        try:
            began = time.thread_time()
            call()
            taken.append(time.thread_time() - began)
        finally:
            gc.enable()
    return min(taken)
