"""Records of kernels compiled ahead of time, and how each is launched.

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
"""The largest second and third dimension of a grid (CUDA programming guide)."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The record of one kernel, for one dtype, tile size and architecture."""

    name: str
    operator: Operator
    dtype: str
    """Dtype of the inputs: bf16, fp16 or fp8."""
    size: Size
    arch: Family
    widths: dict[str, float]
    """Sizes fixed at compile time: D, DV, or C, R and scale, or C, R, DN and DV; heads stay free."""
    inputs: list[str]
    """Pointer arguments in the order of the kernel's parameters; scalars follow, then outputs."""
    scalars: list[Expression]
    """Expressions of the 32-bit integer arguments."""
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
    """Columns of tensor memory, which the kernel allocates and frees itself (sm_100)."""
    ptx_version: str
    ptx_sha256: str

    @property
    def block(self) -> int:
        """The number of threads of one program."""
        return 32 * self.warps

    @property
    def compact(self) -> bool:
        """Whether it launches without raising the function's limit of shared memory."""
        return self.shared <= COMPACT_MEMORY


def faults(kernel: Compiled) -> list[str]:
    """Reasons not to ship a kernel: a plugin could not launch it, or it would be slow."""
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
    """Evaluate an expression whose letters stand for `sizes`, which may be numbers or symbols."""
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
    """`numerator` / `denominator`, rounded up."""
    return -(-numerator // denominator)


def launch(kernel: Compiled, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], list[int]]:
    """Grid and scalar arguments of a launch on tensors of given sizes.

    Raises:
        UserError: if the grid exceeds a GPU's limits.
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
    """Write the records of the kernels, one a line."""
    lines = ",\n  ".join(json.dumps(asdict(kernel)) for kernel in kernels)
    text = f'{{\n "versions": {json.dumps(dict(versions))},\n "objects": [\n  {lines}\n ]\n}}\n'
    atomic_write_bytes(path, text.encode())


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The file that lists the kernels of a folder."""

    versions: dict[str, str]
    objects: list[Compiled]


def load(folder: Path) -> list[Compiled]:
    """Read the records of the kernels in a folder.

    Raises:
        UserError: if the folder has none.
    """
    path = folder / RECORD
    if not path.is_file():
        mend = f"python -m plugins.aot.compile -o {folder}"
        raise UserError(f"no compiled kernels in {folder}; make them with: {mend}")
    return typed(read_json(path), KernelRecord, str(path)).objects


def ptx_of(folder: Path, kernel: Compiled) -> bytes:
    """Read the PTX of a kernel, and check that it is the one its record describes.

    Raises:
        UserError: if the file is missing or has changed.
    """
    path = folder / f"{kernel.name}.ptx"
    if not path.is_file() or hashlib.sha256(code := path.read_bytes()).hexdigest() != kernel.ptx_sha256:
        mend = f"python -m plugins.aot.compile -o {folder}"
        raise UserError(f"{path} does not fit its record; make it with: {mend}")
    return code
