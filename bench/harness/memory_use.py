"""Memory that something takes, by the allocator of a GPU or by the operating system."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Written to clear_refs, this makes Linux reset a process's peak (proc_pid_clear_refs(5))."""


def held(device: torch.device) -> int | None:
    """Bytes held now: allocated on a GPU, else resident of the process; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS")


class Peak:
    """The most memory held since `Peak(device)`, beyond that held then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        self._before = held(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _CLEAR.exists():
            _CLEAR.write_text(_RESET_PEAK)

    def bytes(self) -> int | None:
        """The most bytes held so far; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - (self._before or 0)
        most = _resident("VmHWM")
        return None if most is None or self._before is None else most - self._before


def _resident(name: str) -> int | None:
    """A figure of the process's status file, which counts in kilobytes."""
    if not _STATUS.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else None
