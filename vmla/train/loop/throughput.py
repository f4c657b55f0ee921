"""How fast a stage trains: tokens, operations, and the time that it waits for data.

Operations are the model's own: those of its forward passes, three times over where gradients are computed
(arXiv 2204.02311, appendix B). What checkpointing repeats and what an optimizer does is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vmla.flops import PassCost, text_flops
from vmla.packed_sequence import PackedClip
from vmla.train.loop.parallel import Calls, Passes
from vmla.transformer import VideoMLA

SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the square products whose rate is taken as the peak, by kind of device."""
LEARNING = 3
"""A backward pass has two products for each one of its forward pass."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work done by one process."""

    tokens: int = 0
    """Tokens for which gradients were computed."""
    flops: float = 0.0
    waited: float = 0.0
    """Seconds in which there was no batch to compute on."""
    seconds: float = 0.0
    """Duration of the work, waiting included."""

    def __add__(self, other: Work) -> Work:
        """The work of both together."""
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class Meter:
    """Adds up the work of a stage: the stage counts, and the loop takes the sum after each step."""

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is the type that the stage computes in and that its peak is measured in."""
        self.dtype = dtype
        self._done, self._known = Work(), dict[Hashable, float]()

    def take(self, seconds: float) -> Work:
        """The work since the last call, which took `seconds`."""
        done, self._done = replace(self._done, seconds=seconds), Work()
        return done

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data: the fetching or drawing of a batch."""
        began = time.perf_counter()
        yield
        self._done += Work(waited=time.perf_counter() - began)

    @contextmanager
    def counting(self, *shape: Hashable, tokens: int = 0) -> Iterator[None]:
        """Count the operations of the forward pass inside, which learns; its `shape` determines them.

        PyTorch counts those of the first pass of a shape; it must not be compiled.
        """
        if shape in self._known:
            yield
        else:
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                yield
            self._known[shape] = LEARNING * counter.get_total_flops()
        self._done += Work(tokens=tokens, flops=self._known[shape])

    def passes(self, calls: Calls) -> Calls:
        """`calls`, every pass counted by formula."""

        def watched(model: VideoMLA, dtype: torch.dtype) -> Passes:
            passes = calls(model, dtype)

            def counted_step(latents: Tensor, timestep: Tensor, text_kv: Tensor, kept: Tensor, *window: Any) \
                    -> tuple[Tensor, Tensor]:  # fmt: skip
                config = replace(model.config, chunk=latents.shape[2])
                queries = config.chunk * config.tokens_per_frame
                one = PassCost(config=config, batch=len(latents), keys=kept.shape[2] + queries)
                self._add(model, one.flops, len(latents) * queries)
                return passes.step(latents, timestep, text_kv, kept, *window)

            def counted_text(text: Tensor) -> Tensor:
                self._add(model, text_flops(model.config, len(text)), 0)
                return passes.encode_text(text)

            def counted_clip(latents: Tensor, timestep: Tensor, text_kv: Tensor, clip: PackedClip) -> Tensor:
                config = replace(model.config, chunk=latents.shape[2])
                keys = clip.visible.shape[1] * config.tokens_per_frame
                one = PassCost(config=config, batch=len(latents), keys=keys, seen=clip.share)
                self._add(model, one.flops, len(latents) * config.chunk * config.tokens_per_frame)
                return passes.forward_packed(latents, timestep, text_kv, clip)

            return Passes(counted_step, counted_text, counted_clip)

        return watched

    def _add(self, model: VideoMLA, flops: float, tokens: int) -> None:
        learns = torch.is_grad_enabled() and next(model.parameters()).requires_grad
        times = LEARNING if learns else 1
        self._done += Work(tokens=tokens if learns else 0, flops=times * flops)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast some work went: tokens and operations per second."""

    tokens_per_second: float
    """Tokens with gradients that all processes together computed in a second."""
    utilisation: float
    """Operations per second over the measured matrix peak."""
    waiting: float
    """Share of the time without a batch."""

    @classmethod
    def of(cls, work: Work, peak: float, world: int) -> Speed:
        """The speed of `world` processes that all work alike, from the `work` and the `peak` of one."""
        seconds = max(work.seconds, 1e-9)
        return cls(
            tokens_per_second=round(world * work.tokens / seconds, 1),
            utilisation=round(work.flops / seconds / peak, 4),
            waiting=round(work.waited / seconds, 4),
        )

    def __str__(self) -> str:
        """The speed as the progress line shows it."""
        tokens = f"{self.tokens_per_second:.0f} tokens/s, " if self.tokens_per_second else ""
        return f"{tokens}{self.utilisation:.0%} of the matrix peak, {self.waiting:.1%} waiting for data"


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a large square product on `device`, measured once by a process."""
    return _measured_peak(dtype, device, torch.get_num_threads())


@cache
def _measured_peak(dtype: torch.dtype, device: torch.device, threads: int, rounds: int = 5) -> float:
    """See `matrix_peak`; a CPU's peak depends on `threads`, which therefore keys the cached result."""
    side, generator = SIDES[device.type], torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    product = partial(torch.matmul, a, b)
    with torch.no_grad():
        _timed(product, device)
        return 2.0 * side**3 / statistics.median(_timed(product, device) for _ in range(rounds))


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has finished."""
    _finish(device)
    began = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
