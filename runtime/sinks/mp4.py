"""H.264 in a fragmented MP4 that plays while it is being written, whatever happens to the writer.

A fragment ends at each key frame, one a second, and is flushed at once: nothing that was written
depends on what is still to come.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from runtime.sinks import Frames

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


class Mp4Sink:
    """One video file; it appears with its first frame."""

    def __init__(self, path: Path, *, frames_per_second: int, scale: int = 1) -> None:
        """Write to `path`, each frame enlarged `scale` times."""
        self.path = path
        self._rate, self._scale = frames_per_second, scale
        self._container: Any = None
        self._stream: Any = None
        self._count = 0

    def write(self, frames: Frames) -> None:
        """Encode [n, H, W, 3] frames.

        Raises:
            OSError: if the file cannot be written.
        """
        from av import VideoFrame

        if self._container is None:
            self._open(*frames.shape[1:3])
        for pixels in frames:
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            size = self._stream.width, self._stream.height
            frame = frame.reformat(*size, "yuv420p", interpolation="BICUBIC")
            frame.pts, self._count = self._count, self._count + 1
            self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        import av

        self._container = av.open(str(self.path), "w", format="mp4", options=FRAGMENTED)
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height = width * self._scale, height * self._scale
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = self._rate
        # Frames in order and none held back, so that each chunk is in the file as soon as it is made.
        self._stream.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "18"}
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, self._rate)

    def close(self) -> None:
        """Flush the encoder and close the file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()
