"""Bytes: the process's main memory, a device's free memory, and sizes as people write them."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

from plugins.errors import UserError
from vmla.cli.machine import binary_size, peak_resident_bytes

_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
"""The control group in which a container sees its own memory limit."""

UNITS = {
    prefix + unit: size**power
    for unit, size in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if unit == "B" else "K", "M", "G", "T"), 1)
} | {"": 1, "B": 1}


def resident_bytes() -> int:
    """Bytes of this process that are in memory now; where the system does not say, the most it ever held."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    return peak_resident_bytes()


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; for a CPU, within the limit of this container.

    Raises:
        UserError: where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _MEMINFO.exists():
        raise UserError(f"this system does not say how much memory {device} has free; name it with --memory")
    free = _figures(_MEMINFO)["MemAvailable:"] * 1024
    limit = _GROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        used = int((_GROUP / "memory.current").read_text())
        cached = _figures(_GROUP / "memory.stat")[
            "inactive_file"
        ]  # page cache, which the system frees on demand
        free = min(free, int(most) - used + cached)
    return free


def allowed_bytes(asked: str | None, device: torch.device) -> int:
    """Bytes as a person asked for them; all that `device` has free if nobody did.

    Raises:
        UserError: as `parse_bytes` and `free_bytes`.
    """
    return free_bytes(device) if asked is None else parse_bytes(asked)


def _figures(path: Path) -> dict[str, int]:
    """Names and figures of a file that has both on each line."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def format_bytes(size: int) -> str:
    """`size` in bytes and, where that is easier to read, in MiB or GiB."""
    return f"{size:,} bytes" + (f" ({binary_size(size)})" if size >= 2**20 else "")


def parse_bytes(text: str) -> int:
    """The number of bytes that `8GiB`, `500 MB` or `123456` stands for.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2] not in UNITS:
        raise UserError(f"{text!r} is not an amount of memory; write for example 8GiB, or 500MB")
    return int(float(found[1]) * UNITS[found[2]])
