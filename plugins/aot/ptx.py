"""Makes PTX from Triton fit for other launchers: removes unused parameters and renames the entry.

Triton appends two pointers to scratch memory to every kernel, which reads neither if their sizes are zero,
and names the entry after the Python function. A TensorRT plugin passes only declared arguments, and two
variants of one name would shadow each other.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


class UnfitKernelError(Exception):
    """A kernel cannot be launched from outside Triton; the message says why."""


@dataclass(frozen=True)
class Assembly:
    """Machine code, and the assembler's report: registers and spills."""

    cubin: bytes
    registers: int
    spills: int
    """Bytes stored and loaded per thread because registers ran out."""


def truncate_parameters(ptx: str, name: str, count: int) -> str:
    """Remove all but the first `count` parameters of the entry `name`.

    Raises:
        UnfitKernelError: if there is no such entry, or it uses one of the other parameters.
    """
    found = re.search(rf"\.visible \.entry {re.escape(name)}\((.*?)\)", ptx, re.DOTALL)
    if found is None:
        raise UnfitKernelError(f"no entry {name}")
    declared = [line.strip().rstrip(",") for line in found[1].splitlines() if ".param" in line]
    if len(declared) < count:
        raise UnfitKernelError(f"{name} has {len(declared)} parameters, not {count}")
    for line in declared[count:]:
        spare = line.split()[-1]
        if len(re.findall(rf"\b{re.escape(spare)}\b", ptx)) != 1:
            raise UnfitKernelError(f"{name} uses {spare}, which no launcher outside Triton passes")
    remaining = "\n" + ",\n".join(f"\t{line}" for line in declared[:count]) + "\n"
    return ptx[: found.start(1)] + remaining + ptx[found.end(1) :]


def rename(ptx: str, old: str, new: str) -> str:
    """Rename the entry `old` and its parameters to `new`."""
    ptx = re.sub(rf"\b{re.escape(old)}\b", new, ptx)
    return ptx.replace(f"{old}_param_", f"{new}_param_")


def version(ptx: str) -> str:
    """The ISA that PTX is written in, such as 8.7."""
    found = re.search(r"^\.version\s+(\S+)", ptx, re.MULTILINE)
    if found is None:
        raise UnfitKernelError("the PTX has no version")
    return found[1]


def assemble(ptx: str, assembler: Path) -> Assembly:
    """Assemble PTX for the architecture that it names itself.

    Raises:
        UnfitKernelError: if the assembler fails, with its message.
    """
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    if target is None:
        raise UnfitKernelError("the PTX has no target")
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(assembler), f"-arch={target[1]}", "-v", str(source), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnfitKernelError(f"the assembler refuses it: {done.stderr.strip()[:200]}")
        registers = re.search(r"Used (\d+) registers", done.stderr)
        if registers is None:
            raise UnfitKernelError("the assembler reports no registers")
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
        return Assembly(result.read_bytes(), int(registers[1]), spills)
