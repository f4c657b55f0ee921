"""The kinds of sinks, in the order in which they are asked whether they take a path."""

from __future__ import annotations

from pathlib import Path

from plugins.errors import UserError
from runtime.outputs import FrameSink, NullSink, SinkKind
from runtime.outputs.container import GIF, WEBM
from runtime.outputs.mp4 import MP4
from runtime.outputs.png import PNG
from runtime.outputs.stream import STREAM

NOWHERE = Path("null")
"""The output path that drops all frames."""


def _forget(path: Path, **_: object) -> FrameSink:
    return NullSink()


NULL = SinkKind(what="null", takes=NOWHERE.__eq__, open=_forget, persistent=False, resumes=False)

KINDS = (NULL, STREAM, MP4, WEBM, GIF, PNG)


def kind_of(path: Path) -> SinkKind:
    """The kind of sink that writes to `path`.

    Raises:
        UserError: if none does, listing the names that exist.
    """
    for kind in KINDS:
        if kind.takes(path):
            return kind
    *others, last = (kind.what for kind in KINDS)
    raise UserError(f"cannot write {path.suffix} files; use {', '.join(others)} or {last}")
