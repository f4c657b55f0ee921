"""What the process holds in main memory."""

from __future__ import annotations

import resource
from pathlib import Path

from vmla.machine import peak_resident_bytes

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Bytes of this process that are in memory now; where the system does not say, the most it ever held."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    return peak_resident_bytes()
