"""Describes the machine that an engine was built for, or that would run it."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")

NO_GPU = "no GPU"
"""The architecture reported where there is no GPU."""

_EMITTED = re.compile(r"^(s?sse|avx|amx|fma|f16c|bmi|abm|adx|movbe|popcnt|sve|asimd|bf16|i8mm)")
"""Instruction sets that a C++ compiler uses on its own under `-march=native`."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A processor or GPU, with the versions of the libraries installed."""

    device: str
    """Type of a torch device: `cpu` or `cuda`."""
    architecture: str
    """`x86_64`, `aarch64`; `sm_90` and the like for a GPU."""
    features: tuple[str, ...] = ()
    """Instruction sets of a processor."""
    versions: dict[str, str]
    """Versions of the installed packages that engines depend on."""

    @classmethod
    def here(cls, device: str, packages: Iterable[str]) -> Host:
        """Describe this machine with the versions of `packages`; the GPU is queried only for `cuda`."""
        versions = {name: version for name in packages if (version := _version(name)) is not None}
        if device == "cuda":
            return cls(device=device, architecture=gpu_architecture(), versions=versions)
        return cls(
            device=device,
            architecture=platform.machine(),
            features=_instruction_sets(),
            versions=versions,
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _instruction_sets() -> tuple[str, ...]:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    listed = [line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))]
    return tuple(sorted(flag for flag in listed[0] if _EMITTED.match(flag))) if listed else ()


def gpu_architecture() -> str:
    """Architecture of this machine's GPU, such as `sm_90`, or `NO_GPU`."""
    import torch

    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def driver_version(program: Sequence[str] = ("nvidia-smi",)) -> str | None:
    """Version of this machine's NVIDIA driver, such as `580.95.05`; None if it cannot be told.

    `program` is nvidia-smi, or a stand-in with the same output.
    """
    command = [*program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()  # one line for each GPU; there is one driver
    return lines[0] if done.returncode == 0 and lines else None
