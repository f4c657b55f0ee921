"""When the eager model's blocks are compiled by `torch.compile`, and where its code is cached."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import nn

from plugins.errors import UserError
from vmla.transformer import VideoMLA, compile_blocks

REPAYING_CHUNKS = 1100
"""Chunks from which compiling repays itself: 22 s once against 21 ms a chunk (one H200, `wan-1.3b`, before
attention's products were joined: `bench/results/gpu-wan.json`).

Cached code repays sooner. That is not counted on: a seed's video depends on the choice, and must not depend
on what is in a cache.
"""


def choose_compiled(wish: bool | None, device: torch.device, engine: Path | None, chunks: int) -> bool:
    """Whether to compile: `wish`, or for None, whether a video of so many chunks repays it.

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
    """The choice as a line for a person, with the option that reverses it."""
    if compiled:
        return f"blocks: compiled ({chunks} chunks; --no-compile leaves them as they are)"
    return f"blocks: not compiled ({chunks} chunks; from {REPAYING_CHUNKS} on by default, or with --compile)"


def compiled_twin(model: VideoMLA) -> VideoMLA:
    """A copy of `model` that shares all but its blocks' `forward`, which `torch.compile` gets.

    The blocks of `model` itself stay as they are. Compiling begins with the twin's first pass.
    """
    twin = copy.copy(model)
    twin.__dict__["_modules"] = {**model._modules, "blocks": nn.ModuleList(map(copy.copy, model.blocks))}
    compile_blocks(twin)
    return twin


def code_cache() -> Path | None:
    """A folder of the user's own cache for compiled code; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        own = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return own / "videomla" / "inductor"


def choices_file() -> Path | None:
    """The file beside compiled code that keeps how attention is cut; None for a user without a home."""
    cache = code_cache()
    return None if cache is None else cache.with_name("timed-choices.json")


def set_inductor_cache(folder: Path | None) -> None:
    """Let Inductor cache its code in `folder`, unless the user set another one or `folder` is None.

    The variable is Inductor's only setting for it; without one it writes to the system's temporary folder.
    """
    if folder is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
