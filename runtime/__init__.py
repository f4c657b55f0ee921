"""The autoregressive loop: prompts in, a stream of frames out.

`runtime.generate` is the way in from Python; `vmla-run` is the same from a terminal.
"""

from __future__ import annotations

from typing import Any

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    """`generate` on first use, so that a command's help does not wait for torch."""
    if name == "generate":
        from runtime.api import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
