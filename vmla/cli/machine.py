"""The machine and the commit, for records and results; its limit of threads; sizes of memory as text."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from plugins.errors import UserError

THREADS_PER_CORE = 16
"""The most threads for each core; more of them would only wait for one another."""


def check_threads(wish: int) -> None:
    """Refuse a number of CPU threads that this machine has no use for.

    Raises:
        UserError: for more than `THREADS_PER_CORE` on each core.
    """
    cores = os.cpu_count() or 1
    if wish > (most := THREADS_PER_CORE * cores):
        raise UserError(f"{wish} threads on {cores} cores; use at most {most}, or leave --threads out")


def hardware() -> str:
    """Processor and number of cores of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of this code, or `unknown` outside a checkout or without git."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def binary_size(size: int) -> str:
    """`size` bytes in GiB, or in MiB where they are less than one GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def peak_resident_bytes(*, children: bool = False) -> int:
    """The most bytes of this process that were ever in memory, or of any one child that has ended."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if children:
        peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage counts kilobytes, on macOS bytes
