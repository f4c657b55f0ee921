"""Writes a stream's MP4 file, and adds each chunk to the index once it can be read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from runtime.outputs import Frames, Mark
from runtime.outputs.mp4 import Mp4Sink
from runtime.serve.disk.index import ChunkIndex

Fenced = Callable[[], AbstractContextManager[None]]
"""Returns a context in which no other server writes this stream; entering it raises if one may."""


class IndexedSink:
    """Writes a chunk, adds it to the index and calls `heard`, all on the writer's thread."""

    def __init__(
        self, file: Mp4Sink, index: ChunkIndex, heard: Callable[[], None], fenced: Fenced = nullcontext
    ) -> None:
        """Write to `file` and `index`, only inside `fenced()`; then call `heard`."""
        self._file, self._index, self._heard, self._fenced = file, index, heard, fenced

    def write(self, frames: Frames) -> None:
        """Take the frames of one chunk."""
        if not len(frames):
            return
        with self._fenced():
            self._file.write(frames)
            self._index.add(self._file.mark()["bytes"], len(frames))
        self._heard()

    def mark(self) -> Mark:
        """See `FrameSink.mark`; the mark is that of the file."""
        return self._file.mark()

    def close(self) -> None:
        """See `FrameSink.close`; the index needs no end."""
        self._file.close()


def elsewhere(mark: Mark) -> Mark:
    """The mark of a sink that continues numbers and times in a new file."""
    nothing = dict.fromkeys(("bytes", "header", "header_crc32", "crc32"), 0)
    return {"frames": mark["frames"], "fragments": mark["fragments"], **nothing}
