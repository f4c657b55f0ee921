"""Kernels compiled ahead of time: what is known of each, and how it is launched.

A launch is written in expressions over the sizes of the tensors, so that the same record serves a
CUDA driver, which wants numbers, and TensorRT, which wants symbols. An expression is a number, a
letter, or a list of an operation (add, mul, cdiv) and its two operands, the first of which holds a
letter. Letters: B, N, S, K as everywhere; T cached and O own tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugins.atomic_files import atomic_write_bytes
from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError
from plugins.triton.tiles import COMPACT_MEMORY, SHARED_MEMORY, Family, Operator, Size

Expression = int | str | list[Any]
RECORD = "objects.json"
LARGEST_GRID = 65535
"""Of the second and third dimension (CUDA programming guide)."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel for one type, size and architecture."""

    name: str
    operator: Operator
    dtype: str
    """bf16, fp16 or fp8, as the inputs are."""
    size: Size
    arch: Family
    widths: dict[str, float]
    """What was fixed when it was compiled: D, DV, or C, R and scale, or C, R, DN and DV; and heads free."""
    inputs: list[str]
    """Pointers, in the order of the kernel's parameters; the scalars follow, then the outputs."""
    scalars: list[Expression]
    """32-bit integers."""
    outputs: list[str]
    grid: list[Expression]
    warps: int
    shared: int
    """Bytes of dynamic shared memory."""
    registers: int
    spills: int
    scratch: int
    """Bytes of global and profiling scratch that Triton would have to allocate."""
    clusters: int
    cooperative: bool
    tensor_memory: int
    """Columns, which the kernel takes and gives back itself (sm_100)."""
    ptx_version: str
    ptx_sha256: str

    @property
    def block(self) -> int:
        """The number of threads of one program."""
        return 32 * self.warps

    @property
    def compact(self) -> bool:
        """Whether it launches without an attribute set on the function."""
        return self.shared <= COMPACT_MEMORY


def faults(kernel: Compiled) -> list[str]:
    """Why a kernel should not be shipped: what no plugin could launch, and what would make it slow."""
    found = {
        f"{kernel.spills} bytes of registers spill": kernel.spills > 0,
        f"{kernel.scratch} bytes of scratch memory": kernel.scratch > 0,
        f"clusters of {kernel.clusters} blocks": kernel.clusters > 1,
        "a cooperative launch": kernel.cooperative,
        f"{kernel.shared} bytes of shared memory": kernel.shared > SHARED_MEMORY[kernel.arch],
        f"{kernel.shared} bytes in a compact kernel": kernel.size == "compact" and not kernel.compact,
    }
    return [fault for fault, present in found.items() if present]


def evaluate(expression: Expression, sizes: Mapping[str, Any], cdiv: Callable[[Any, int], Any]) -> Any:
    """The value of an expression where letters stand for `sizes`, numbers or symbols alike."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return sizes[expression]
    operation, left, right = expression
    first, second = evaluate(left, sizes, cdiv), evaluate(right, sizes, cdiv)
    if operation == "cdiv":
        return cdiv(first, second)
    return first + second if operation == "add" else first * second


def cdiv(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def launch(kernel: Compiled, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], list[int]]:
    """Grid and scalars of a launch on tensors of given sizes.

    Raises:
        UserError: if the grid is larger than a GPU takes.
    """
    grid = tuple(evaluate(axis, sizes, cdiv) for axis in kernel.grid)
    if max(grid[1:]) > LARGEST_GRID:
        raise UserError(f"{kernel.name}: a grid of {grid} is too large; use a smaller batch")
    return grid, [evaluate(scalar, sizes, cdiv) for scalar in kernel.scalars]


def save(folder: Path, kernels: Sequence[tuple[Compiled, str, bytes]], versions: Mapping[str, str]) -> None:
    """Write each kernel's PTX and machine code, then the record of them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, ptx, cubin in kernels:
        atomic_write_bytes(folder / f"{kernel.name}.ptx", ptx.encode())
        atomic_write_bytes(folder / f"{kernel.name}.cubin", cubin)
    save_record(folder / RECORD, [kernel for kernel, _, _ in kernels], versions)


def save_record(path: Path, kernels: Sequence[Compiled], versions: Mapping[str, str]) -> None:
    """Write what is known of the kernels, one to a line."""
    lines = ",\n  ".join(json.dumps(asdict(kernel)) for kernel in kernels)
    text = f'{{\n "versions": {json.dumps(dict(versions))},\n "objects": [\n  {lines}\n ]\n}}\n'
    atomic_write_bytes(path, text.encode())


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The file that lists the kernels of a folder."""

    versions: dict[str, str]
    objects: list[Compiled]


def load(folder: Path) -> list[Compiled]:
    """What is known of the kernels in a folder.

    Raises:
        UserError: if there is no record in it.
    """
    path = folder / RECORD
    if not path.is_file():
        mend = f"python -m plugins.aot.compile -o {folder}"
        raise UserError(f"no compiled kernels in {folder}; make them with: {mend}")
    return typed(read_json(path), KernelRecord, str(path)).objects


def ptx_of(folder: Path, kernel: Compiled) -> bytes:
    """The PTX of a kernel, as it was when its record was written.

    Raises:
        UserError: if the file is missing or has changed.
    """
    path = folder / f"{kernel.name}.ptx"
    if not path.is_file() or hashlib.sha256(code := path.read_bytes()).hexdigest() != kernel.ptx_sha256:
        mend = f"python -m plugins.aot.compile -o {folder}"
        raise UserError(f"{path} does not fit its record; make it with: {mend}")
    return code
