"""WebM (VP9) and GIF files, each written as a single piece by an encoder that stays open.

Unlike our MP4 files, such a file cannot be cut and continued: a video that is stopped ends there, and its
file is complete. If the process is killed, the last second may be missing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from plugins.atomic_files import temporary_path
from plugins.errors import UserError
from runtime.outputs import Clear, Frames, FrameSink, Mark, SinkKind
from runtime.outputs.mp4_fragment import matrix_for, name_colours, to_yuv
from runtime.outputs.presence import check_presence
from vmla.config import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import OutputContainer
    from av.filter import Graph

FLUSHED = {"flush_packets": "1"}
"""The muxer writes every packet at once, so that little is lost if the process is killed."""
VP9 = {"deadline": "realtime", "cpu-used": "6", "lag-in-frames": "0", "crf": "24", "b": "0", "threads": "1"}
"""No frame held back; one thread, so that the bytes do not depend on the machine's cores."""


class ContainerSink(ABC):
    """One file; it appears with its first frames, and is whole once it is closed."""

    muxer: str

    def __init__(self, path: Path, *, frames_per_second: int, scale: int, clear: Clear | None) -> None:
        """Write to `path`, each frame enlarged `scale` times; `clear` removes an older output there."""
        self.path, self.rate = path, frames_per_second
        self._scale, self._clear, self._frames = scale, clear, 0
        self._file: BinaryIO | None = None
        self._temporary = temporary_path(path)

    @abstractmethod
    def stream(self, container: OutputContainer, width: int, height: int) -> VideoStream:
        """Add the video stream to `container`, for pictures of `width` x `height` pixels, and return it."""

    @abstractmethod
    def pictures(self, pixels: NDArray[np.uint8] | None, number: int) -> Iterator[VideoFrame]:
        """Yield the encoder's input for frame `number` [H, W, 3], or what is left if `pixels` is None."""

    def write(self, frames: Frames) -> None:
        """Encode [n, H, W, 3] frames.

        Raises:
            OSError: if the file cannot be written, or is no longer at its path.
        """
        if not len(frames):
            return
        begins = self._file is None
        file = self._begin(frames) if self._file is None else self._file
        if not begins:
            check_presence(self.path, os.fstat(file.fileno()))
        for pixels in frames:
            self._encode(self.pictures(pixels, self._frames))
            self._frames += 1
        if begins:
            if self._clear is not None:
                self._clear(())
            self._temporary.replace(self.path)

    def mark(self) -> Mark:
        """The number of frames so far; another process cannot continue after them."""
        return {"frames": self._frames}

    def close(self) -> None:
        """Finish the file; one that could not even take its first frames is removed."""
        if self._file is None:
            return
        try:
            self._encode(self.pictures(None, self._frames))
            self._container.mux(self._stream.encode(None))
            self._container.close()
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _begin(self, frames: Frames) -> BinaryIO:
        import av

        self._temporary.unlink(missing_ok=True)
        self._file = self._temporary.open("xb", buffering=0)
        self._container = av.open(self._file, "w", format=self.muxer, options=FLUSHED)
        height, width = (side * self._scale for side in frames.shape[1:3])
        self._stream = self.stream(self._container, width, height)
        return self._file

    def _encode(self, pictures: Iterator[VideoFrame]) -> None:
        for picture in pictures:
            self._container.mux(self._stream.encode(picture))


class WebmSink(ContainerSink):
    """VP9, which browsers play without a licence."""

    muxer = "webm"

    def stream(self, container: OutputContainer, width: int, height: int) -> VideoStream:
        """Add a VP9 stream that has a key frame at least every second."""
        stream = container.add_stream("libvpx-vp9", rate=self.rate, options=VP9)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = self.rate
        stream.codec_context.time_base = Fraction(1, self.rate)
        self._size, self._matrix = (width, height), matrix_for(height)
        name_colours(stream.codec_context, self._matrix)
        return stream

    def pictures(self, pixels: NDArray[np.uint8] | None, number: int) -> Iterator[VideoFrame]:
        """Yield one picture for each frame."""
        if pixels is not None:
            picture = to_yuv(pixels, *self._size, self._matrix)
            picture.pts = number
            yield picture


class GifSink(ContainerSink):
    """GIF: a palette of 256 colours for each picture; times are in hundredths of a second."""

    muxer = "gif"

    def stream(self, container: OutputContainer, width: int, height: int) -> VideoStream:
        """Add a GIF stream, which players repeat for ever."""
        stream = container.add_stream("gif", rate=self.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.time_base = Fraction(1, self.rate)
        self._graph = _palettes(width // self._scale, height // self._scale, self._scale, self.rate)
        return stream

    def pictures(self, pixels: NDArray[np.uint8] | None, number: int) -> Iterator[VideoFrame]:
        """Yield the pictures that the filters have ready; the last ones may only come at the end."""
        import av

        if pixels is None:
            self._graph.push(None)
        else:
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, self.rate)
            self._graph.push(picture)
        while True:
            try:
                ready = self._graph.pull()
            except (BlockingIOError, EOFError):  # the filters need another picture, or have ended
                return
            assert isinstance(ready, av.VideoFrame)
            yield ready


def _palettes(width: int, height: int, scale: int, rate: int) -> Graph:
    """Filters that enlarge pictures and give each a palette of its own."""
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, rate))
    large = graph.add("scale", f"{width * scale}:{height * scale}:flags=bicubic")
    both, find = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, end = graph.add("paletteuse", "new=1"), graph.add("buffersink")
    source.link_to(large)
    large.link_to(both)
    both.link_to(use, 0, 0)
    both.link_to(find, 1, 0)
    find.link_to(use, 0, 1)
    use.link_to(end)
    graph.configure()
    return graph


def _kind(what: str, ending: str, sink: type[ContainerSink]) -> SinkKind:
    """The `SinkKind` of a class of sinks."""

    def begin(
        path: Path, *, scale: int, after: Mark | None = None, clear: Clear | None = None
    ) -> FrameSink:  # fmt: skip
        if after is not None:
            raise UserError(f"{path} cannot be resumed; make it again with --overwrite")
        return sink(path, frames_per_second=FRAMES_PER_SECOND, scale=scale, clear=clear)

    return SinkKind(
        what=what, takes=lambda path: path.suffix.lower() == ending, open=begin, resumes=False
    )  # fmt: skip


WEBM = _kind("a .webm file", ".webm", WebmSink)
GIF = _kind("a .gif file", ".gif", GifSink)
