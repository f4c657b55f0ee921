"""The autoregressive loop: prompts in, a stream of frames out.

`runtime.generate` is the way in from Python, `runtime.LivePrompts` a prompt that may change on the
way; `vmla-run` is the same from a terminal.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LivePrompts", "generate"]


def __getattr__(name: str) -> Any:
    """Both on first use, so that a command's help does not wait for torch."""
    if name == "generate":
        from runtime.api import generate

        return generate
    if name == "LivePrompts":
        from runtime.prompts.sources import LivePrompts

        return LivePrompts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
