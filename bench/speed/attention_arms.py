"""The arms of the kernel benchmark: inputs, operations and errors of each form of attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness.paired_timing import SETS, Call
from plugins import Backend, expand, mla_attention, mla_attention_absorbed
from plugins.checks import FLOAT8
from plugins.operator import dense_attention
from runtime.engines.layers.wave_attention import Sizes, WaveAttention, candidates, rows_of_whole_waves

CHECKED_QUERIES = 64
"""Rows of the result that are compared with the reference: all of them would not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one layer's attention."""

    batch: int
    heads: int
    queries: int
    keys: int
    nope: int
    rotary: int
    value: int
    content: int

    @property
    def width(self) -> int:
        """d, the width of a head."""
        return self.nope + self.rotary

    @property
    def entry(self) -> int:
        """E, the width of a cache entry."""
        return self.content + self.rotary

    @property
    def flops_expanded(self) -> int:
        """Operations of scores and weighted sums, two for each multiplication."""
        return 2 * self.batch * self.heads * self.queries * self.keys * (self.width + self.value)

    @property
    def flops_absorbed(self) -> int:
        """Operations of scores and sums in latent space."""
        return 2 * self.batch * self.heads * self.queries * self.keys * (self.entry + self.content)

    @property
    def flops_expand(self) -> int:
        """The up-projection of every key token."""
        return 2 * self.batch * self.keys * self.content * self.heads * (self.nope + self.value)


@dataclass(frozen=True)
class AttentionArm:
    """One thing that is timed."""

    name: str
    flops: int
    call: Call
    error: Callable[[], float]
    """Largest error against the reference over the largest value of the reference."""


class RotatingInputs:
    """Random inputs of unit size, as normalised activations are, in rotating sets."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)
        s = shape
        heads = (s.batch, s.heads)
        self.query = self._sets(*heads, s.queries, s.width)
        self.keys = self._sets(*heads, s.keys, s.width)
        self.values = self._sets(*heads, s.keys, s.value)
        self.latent_query = self._sets(*heads, s.queries, s.entry)
        self.cached = self._sets(s.batch, s.keys - s.queries, s.entry)
        self.own = self._sets(s.batch, s.queries, s.entry)
        self.weights = self._sets(s.heads * s.nope, s.content), self._sets(s.heads * s.value, s.content)
        angles = torch.rand(s.keys, s.rotary // 2, generator=self._generator, device=device) * 20
        self.tables = angles.cos(), angles.sin(), torch.ones(s.keys, dtype=torch.bool, device=device)
        self.scales = torch.ones(3, s.heads, device=device)

    def _sets(self, *shape: int) -> list[Tensor]:
        size = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        return [
            (torch.randn(*shape, generator=self._generator, device=self.device) * size).to(self.dtype)
            for _ in range(SETS)
        ]


def bare_sdpa(inputs: RotatingInputs) -> AttentionArm:
    """A library's attention on the same tensors, without validity: the baseline of all arms."""

    def call(index: int) -> Tensor:
        return dense_attention(inputs.query[index], inputs.keys[index], inputs.values[index])

    return AttentionArm("sdpa, no mask", inputs.shape.flops_expanded, call, lambda: _error(inputs, call(0)))


def expanded(inputs: RotatingInputs, backend: Backend) -> AttentionArm:
    """Expanded attention, as `plugins.mla_attention` computes it."""
    scales = inputs.scales if inputs.dtype == FLOAT8 else None

    def call(index: int) -> Tensor:
        tensors = inputs.query[index], inputs.keys[index], inputs.values[index], inputs.tables[2]
        return mla_attention(*tensors, scales=scales, backend=backend)

    return AttentionArm(
        f"expanded, {backend}", inputs.shape.flops_expanded, call, lambda: _error(inputs, call(0))
    )


def split(inputs: RotatingInputs, splits: int) -> AttentionArm:
    """Expanded attention by our kernel with a mask, which cuts the keys into `splits`."""

    def call(index: int) -> Tensor:
        from plugins.triton import launch

        tensors = inputs.query[index], inputs.keys[index], inputs.values[index], inputs.tables[2]
        return launch.attention(*tensors, None, splits=splits)

    name = f"expanded, triton, splits: {splits}"
    return AttentionArm(name, inputs.shape.flops_expanded, call, lambda: _error(inputs, call(0)))


def in_waves(inputs: RotatingInputs, splits: int) -> AttentionArm | None:
    """Attention in whole waves, the rest with `splits`; None where whole waves leave nothing or are none."""
    sizes = Sizes.of(inputs.query[0], inputs.keys[0])
    processors = torch.cuda.get_device_properties(inputs.device).multi_processor_count
    if splits not in candidates(sizes, processors):
        return None
    attend = WaveAttention(sizes, rows_of_whole_waves(sizes, processors), splits)

    def call(index: int) -> Tensor:
        return attend.cut(inputs.query[index], inputs.keys[index], inputs.values[index])

    def error() -> float:
        out = call(0)
        return max(_error(inputs, out), _error(inputs, out, slice(-CHECKED_QUERIES, None)))

    return AttentionArm(f"in waves, splits: {splits}", inputs.shape.flops_expanded, call, error)


def absorbed(inputs: RotatingInputs, backend: Backend) -> AttentionArm:
    """Absorbed attention, as `plugins.mla_attention_absorbed` computes it."""
    scales = inputs.scales[:2] if inputs.dtype == FLOAT8 else None
    scale = inputs.shape.width**-0.5

    def run(query: Tensor, index: int, chosen: Backend) -> Tensor:
        window = inputs.cached[index], inputs.own[index], *inputs.tables
        return mla_attention_absorbed(query, *window, scale, scales=scales, backend=chosen)

    def call(index: int) -> Tensor:
        return run(inputs.latent_query[index], index, backend)

    def error() -> float:
        rows = slice(0, CHECKED_QUERIES)
        wanted = run(inputs.latent_query[0][:, :, rows].contiguous(), 0, "reference")
        return relative(call(0)[:, :, rows], wanted)

    return AttentionArm(f"absorbed, {backend}", inputs.shape.flops_absorbed, call, error)


def expansion(inputs: RotatingInputs, backend: Backend) -> AttentionArm:
    """The expansion alone, as `plugins.expand` computes it."""

    def run(index: int, chosen: Backend) -> tuple[Tensor, Tensor]:
        cached, own, (cos, sin, valid) = inputs.cached[index], inputs.own[index], inputs.tables
        up_key, up_value = (weight[index] for weight in inputs.weights)
        heads = inputs.shape.heads
        return expand(cached, own, up_key, up_value, cos, sin, valid, heads, backend=chosen)

    def error() -> float:
        pairs = zip(run(0, backend), run(0, "reference"), strict=True)
        return max(relative(out, wanted) for out, wanted in pairs)

    return AttentionArm(
        f"expand, {backend}", inputs.shape.flops_expand, lambda index: run(index, backend), error
    )


def relative(out: Tensor, wanted: Tensor) -> float:
    """Largest error over the largest expected value; NaN where a result is not finite."""
    return float((out.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def _error(inputs: RotatingInputs, out: Tensor, rows: slice = slice(0, CHECKED_QUERIES)) -> float:
    """The largest error of some `rows` of `out`, which has those of all queries."""
    scales = inputs.scales if inputs.dtype == FLOAT8 else None
    tensors = inputs.query[0][:, :, rows].contiguous(), inputs.keys[0], inputs.values[0], inputs.tables[2]
    return relative(out[:, :, rows], mla_attention(*tensors, scales=scales, backend="reference"))
