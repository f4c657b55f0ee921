"""H.264 in a fragmented MP4 to outputs that cannot seek: a pipe, a socket, standard output."""

from __future__ import annotations

import os
import select
import socket
import stat
from fractions import Fraction
from pathlib import Path

from plugins.errors import UserError
from runtime.outputs import Clear, Frames, Mark, SinkKind
from runtime.outputs.mp4_fragment import encode, matrix_for, place
from vmla.config import FRAMES_PER_SECOND

STANDARD_OUTPUT = Path("-")


def is_stream(path: Path) -> bool:
    """Whether `path` takes bytes in order and forgets them: standard output, a named pipe or a socket."""
    if path == STANDARD_OUTPUT:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def is_standard_output(path: Path) -> bool:
    """Whether the stream `path` is standard output, under whatever name."""
    return path == STANDARD_OUTPUT or os.path.samestat(path.stat(), os.fstat(1))


class ReaderGoneError(OSError):
    """Nobody reads the stream any more."""


class StreamSink:
    """One video, sent chunk by chunk; the bytes are those that `Mp4Sink` writes."""

    def __init__(self, path: Path, *, frames_per_second: int, scale: int = 1) -> None:
        """Send to `path`, each frame enlarged `scale` times; a pipe is opened with the first frame.

        While standard output carries a video, all messages go to standard error.

        Raises:
            UserError: if it is standard output and that is a terminal.
        """
        self._path, self._rate, self._scale = path, frames_per_second, scale
        self._file: int | None = None
        self._frames = self._fragments = 0
        if path == STANDARD_OUTPUT:
            if os.isatty(1):
                raise UserError("standard output is a terminal; pipe it into a player: | ffplay -")
            self._file = os.dup(1)
            os.dup2(2, 1)

    def write(self, frames: Frames) -> None:
        """Encode [n, H, W, 3] frames and send them; waits for whoever reads.

        Raises:
            ReaderGoneError: if nobody reads any more.
            OSError: if the system refuses the bytes for another reason.
        """
        if not len(frames):
            return
        matrix = matrix_for(frames.shape[1] * self._scale)
        header, fragments = encode(frames, rate=self._rate, scale=self._scale, matrix=matrix)
        seconds = Fraction(self._frames, self._rate)
        begun = self._fragments
        self._fragments += place(header, fragments, number=begun + 1, seconds=seconds)
        try:
            if self._file is None:
                self._file = _opened(self._path)
            _send(self._file, fragments if begun else header + fragments)
        except (BrokenPipeError, ConnectionError) as error:
            raise ReaderGoneError(error.errno, f"nobody reads {self._path} any more") from error
        self._frames += len(frames)

    def mark(self) -> Mark:
        """The number of frames so far; they cannot be read back."""
        return {"frames": self._frames}

    def close(self) -> None:
        """Close the stream, at which its reader sees the end of the video."""
        if self._file is not None:
            if self._path == STANDARD_OUTPUT:
                os.dup2(self._file, 1)
            os.close(self._file)
            self._file = None


def _open(path: Path, *, scale: int, after: Mark | None = None, clear: Clear | None = None) -> StreamSink:
    """Open the stream, which always begins at its start; `after` and `clear` are ignored."""
    return StreamSink(path, frames_per_second=FRAMES_PER_SECOND, scale=scale)


STREAM = SinkKind(what="- for standard output", takes=is_stream, open=_open, persistent=False, resumes=False)


def _opened(path: Path) -> int:
    """The descriptor of a pipe, once somebody reads from it, or of a connection to a socket."""
    if not stat.S_ISSOCK(path.stat().st_mode):
        return os.open(path, os.O_WRONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        return connection.detach()


def _send(file: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(file, left) :]
        except BlockingIOError:  # the pipe is in non-blocking mode, which its creator may have set
            select.select([], [file], [])
