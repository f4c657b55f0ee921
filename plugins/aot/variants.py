"""Which kernels are compiled ahead of time, and how each is launched; pure values, no Triton.

The widths are compiled in; they are those of the published model unless others are given. The numbers of
tokens, heads and videos stay free: grids and scalars are expressions over them (`plugins.aot.objects`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from plugins.aot.objects import Expression
from plugins.errors import UserError
from plugins.triton.tiles import (
    LOG2_E,
    Family,
    Operator,
    Size,
    Tile,
    divisor,
    halves,
    power_of_two,
    rotary_pairs,
    tile,
)

PTX_ISA = 87
"""PTX ISA 8.7, the oldest that knows all three targets (CUDA 12.8); an older driver cannot load it."""
POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp8": "*fp8e4nv"}


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Channels that are compiled into a kernel; the defaults are the published model's."""

    nope: int = 96
    rotary: int = 32
    value: int = 128
    content: int = 192

    @property
    def scale(self) -> float:
        """The factor of the scores, 1 / sqrt(dn + R)."""
        return (self.nope + self.rotary) ** -0.5


@dataclass(frozen=True, kw_only=True)
class KernelVariant:
    """One kernel, for one data type, tile size and architecture."""

    operator: Operator
    dtype: str
    size: Size
    arch: Family
    widths: Widths = Widths()

    @property
    def name(self) -> str:
        """The symbol of the kernel, unique among all variants."""
        t = tile(self.operator, capability=self.arch, size=self.size)
        shape = f"{t.rows}x{t.columns}" if t.columns else str(t.rows)
        return f"vmla_{self.operator}_{self.dtype}_{shape}_w{t.num_warps}s{t.num_stages}_sm{self.arch}"


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Signature, compile-time constants and grid of a variant."""

    inputs: dict[str, str]
    """Triton's pointer type of each input, in the order of the arguments."""
    scalars: dict[str, Expression]
    """How each integer argument follows from the sizes of a call."""
    outputs: dict[str, str]
    constants: dict[str, Any]
    grid: list[Expression]
    fixed: dict[str, float]
    """Sizes that a call must have for the kernel to fit."""


def variants(arch: Family) -> Iterator[KernelVariant]:
    """Every kernel that ships for one architecture; `compact` only where its tile differs from `fast`."""
    for operator in get_args(Operator):
        for dtype in ("bf16", "fp16") if operator == "expand" else ("bf16", "fp16", "fp8"):
            for size in get_args(Size):
                variant = KernelVariant(operator=operator, dtype=dtype, size=size, arch=arch)
                other = KernelVariant(operator=operator, dtype=dtype, size="fast", arch=arch)
                if size == "fast" or variant.name != other.name:
                    yield variant


def compile_options(variant: KernelVariant) -> dict[str, Any]:
    """Options of Triton's compiler, besides the target."""
    size = _tile(variant)
    return {
        "num_warps": size.num_warps,
        "num_stages": size.num_stages,
        "ptx_version": PTX_ISA,
        "enable_fp_fusion": True,
    }


def launch_config(variant: KernelVariant) -> LaunchConfig:
    """How `variant` is compiled and launched.

    Raises:
        UserError: if the absorbed kernel has no tile for the variant's content width.
    """
    if variant.operator == "expand":
        return _launch_expand(variant)
    return _launch_attention(variant) if variant.operator == "mla_attention" else _launch_absorbed(variant)


def _launch_expand(variant: KernelVariant) -> LaunchConfig:
    w, t, kind = variant.widths, _tile(variant), POINTERS[variant.dtype]
    entries = dict.fromkeys(("cached", "own", "up_key", "up_value"), kind)
    return LaunchConfig(
        inputs=entries | {"cos": "*fp32", "sin": "*fp32", "valid": "*i1"},
        scalars={"n_cached": "T", "n_own": "O"},
        outputs={"keys": kind, "values": kind},
        constants={
            "C": w.content, "R": w.rotary, "DN": w.nope, "DV": w.value, "PAD_C": divisor(w.content),
            "PAD_R": power_of_two(w.rotary // 2, least=1), "PAD_N": power_of_two(w.nope),
            "PAD_V": power_of_two(w.value), "BLOCK": t.rows,
        },
        grid=[["add", ["cdiv", "T", t.rows], ["cdiv", "O", t.rows]], "N", "B"],
        fixed={"C": w.content, "R": w.rotary, "DN": w.nope, "DV": w.value},
    )  # fmt: skip


def _launch_attention(variant: KernelVariant) -> LaunchConfig:
    w, t, kind = variant.widths, _tile(variant), POINTERS[variant.dtype]
    width = w.nope + w.rotary
    return LaunchConfig(
        inputs=dict.fromkeys(("query", "keys", "values"), kind) | {"valid": "*i1"} | _scales(variant),
        scalars={"n_queries": "S", "n_keys": "K", "heads": "N"},
        outputs={"out": _result(variant)},
        constants={
            "SCALE": w.scale * LOG2_E, "D": width, "DV": w.value, "BLOCK_Q": t.rows,
            "BLOCK_K": t.columns, "SPLITS": 1,
        },
        grid=[["cdiv", "S", t.rows], ["mul", "B", "N"], 1],
        fixed={"D": width, "DV": w.value},
    )  # fmt: skip


def _launch_absorbed(variant: KernelVariant) -> LaunchConfig:
    w, t, kind = variant.widths, _tile(variant), POINTERS[variant.dtype]
    parts = halves(w.content)
    if parts is None:
        raise UserError(f"a content width of {w.content} is not one or two powers of two of at least 16")
    tables = {"cos": "*fp32", "sin": "*fp32", "valid": "*i1"}
    return LaunchConfig(
        inputs=dict.fromkeys(("query", "cached", "own"), kind) | tables | _scales(variant),
        scalars={"n_rows": ["mul", "N", "S"], "n_queries": "S", "n_cached": "T", "n_own": "O"},
        outputs={"out": _result(variant)},
        constants={
            "SCALE": w.scale * LOG2_E, "C0": parts[0], "C1": parts[1], "R": w.rotary,
            "HALF": rotary_pairs(w.rotary, 1 if variant.dtype == "fp8" else 2), "BLOCK_Q": t.rows,
            "BLOCK_K": t.columns, "SPLITS": 1,
        },
        grid=[["cdiv", ["mul", "N", "S"], t.rows], "B", 1],
        fixed={"C": w.content, "R": w.rotary, "scale": w.scale},
    )  # fmt: skip


def _tile(variant: KernelVariant) -> Tile:
    return tile(variant.operator, capability=variant.arch, size=variant.size)


def _scales(variant: KernelVariant) -> dict[str, str]:
    return {"scales": "*fp32"} if variant.dtype == "fp8" else {}


def _result(variant: KernelVariant) -> str:
    return "*bf16" if variant.dtype == "fp8" else POINTERS[variant.dtype]
