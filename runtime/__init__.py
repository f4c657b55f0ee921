"""The autoregressive loop: prompts in, a stream of frames out.

`runtime.VideoPipeline` is the entry point from Python, and `runtime.generate` its short form for one video;
`runtime.LivePrompts` is a prompt that may change during the video, `runtime.GeneratedVideo` a video in the
making and `runtime.State` all that is needed to continue one. `vmla-run` is the same from a terminal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers do not run `__getattr__`: to them, all that it gives would be Any
    from runtime.pipeline import VideoPipeline, generate
    from runtime.prompts.sources import LivePrompts
    from runtime.resume.state import State
    from runtime.video import GeneratedVideo

_PUBLIC = {
    "GeneratedVideo": "runtime.video",
    "LivePrompts": "runtime.prompts.sources",
    "State": "runtime.resume.state",
    "VideoPipeline": "runtime.pipeline",
    "generate": "runtime.pipeline",
}
"""Public names, and the modules that define them."""

__all__ = ["GeneratedVideo", "LivePrompts", "State", "VideoPipeline", "generate"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a command's help does not wait for torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion: most of them are not loaded yet."""
    return sorted(__all__)
