"""When the eager model's blocks are compiled by `torch.compile`, and where the compiled code is kept."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from plugins.errors import UserError

REPAYING_CHUNKS = 1100
"""Chunks from which compiling repays itself: 22 s once against 21 ms a chunk (one H200, `wan-1.3b`, before
attention's products were joined: `bench/results/gpu-wan.json`).

Code in the cache repays sooner. Nobody counts on that, for what a seed gives depends on the choice.
"""


def choose_compiled(wish: bool | None, device: torch.device, engine: Path | None, chunks: int) -> bool:
    """Whether to compile: `wish`, or what a video of so many chunks repays.

    Raises:
        UserError: for a wish that cannot be fulfilled.
    """
    if wish and engine is not None:
        raise UserError(f"{engine} is compiled already; leave out --compile, or say --engine eager")
    if wish and device.type != "cuda":
        raise UserError(f"--compile is for a GPU, not {device}; build an engine instead: vmla-export build")
    if wish is not None:
        return wish
    return device.type == "cuda" and engine is None and chunks >= REPAYING_CHUNKS


def compiled_line(compiled: bool, chunks: int) -> str:
    """The choice for a person to read, with what turns it around."""
    if compiled:
        return f"blocks: compiled ({chunks} chunks; --no-compile leaves them as they are)"
    return f"blocks: not compiled ({chunks} chunks; from {REPAYING_CHUNKS} on by default, or with --compile)"


def code_cache() -> Path | None:
    """A folder of the user's own cache for compiled code; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        own = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return own / "videomla" / "inductor"


def set_inductor_cache(folder: Path | None) -> None:
    """Let Inductor keep its code in `folder`, unless the user named another or there is none.

    The variable is Inductor's only setting for it; without one it writes to the system's temporary folder.
    """
    if folder is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
