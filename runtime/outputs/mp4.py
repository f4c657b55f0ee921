"""H.264 in a fragmented MP4 that plays while it is being written, whatever happens to the writer.

The frames of one call of `write` are in the file when the call returns, as fragments that depend on
nothing before or after them. A fragment's first eight bytes are written last: until then, players see
an unknown box that reaches to the end of the file, and skip it.
"""

from __future__ import annotations

import os
import zlib
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

from plugins.atomic_files import temporary_path
from plugins.documents.regular_file import opened
from plugins.errors import UserError
from runtime.outputs import Clear, Frames, Mark, SinkKind
from runtime.outputs.mp4_fragment import encode, matrix_for, place
from runtime.outputs.presence import check_presence
from vmla.config import FRAMES_PER_SECOND

HEAD = 8
"""Bytes of a box's size and type."""
PIECE = 1 << 20
"""Bytes read at a time."""


class Mp4Sink:
    """One video file; it appears with its first frames."""

    def __init__(
        self, path: Path, *, frames_per_second: int, scale: int = 1, after: Mark | None = None,
        clear: Clear | None = None,
    ) -> None:  # fmt: skip
        """Write to `path`, each frame enlarged `scale` times; continue `after` the mark of an earlier sink.

        `clear` removes an older output at `path`, once the first frames lie beside it.

        Raises:
            UserError: if the file is not the one that the mark was made of.
        """
        self.path = path
        self._rate, self._scale, self._clear = frames_per_second, scale, clear
        self._file: BinaryIO | None = None
        self._temporary = temporary_path(path)
        start = after or dict.fromkeys(("frames", "bytes", "fragments", "header", "header_crc32"), 0)
        self._frames, self._bytes, self._fragments = start["frames"], start["bytes"], start["fragments"]
        self._header, self._header_crc32 = start["header"], start["header_crc32"]
        self._crc32: int | None = after.get("crc32") if after else 0
        """CRC-32 of all bytes so far; None if the file was begun by a version that did not compute it."""
        self._matrix = start.get("matrix", 0) if self._bytes else None
        """Colour matrix of the whole file, chosen with its first frame; None before that."""
        if self._bytes:
            self._check()

    def write(self, frames: Frames) -> None:
        """Encode [n, H, W, 3] frames and append them.

        Raises:
            OSError: if the file cannot be written, or is no longer at its path.
            UserError: if the encoder is not the one that wrote the file so far.
        """
        if not len(frames):
            return
        if self._matrix is None:
            self._matrix = matrix_for(frames.shape[1] * self._scale)
        header, fragments = encode(frames, rate=self._rate, scale=self._scale, matrix=self._matrix)
        begins, seconds = not self._bytes, Fraction(self._frames, self._rate)
        if self._file is None:
            self._file = self._open(header)
        else:
            check_presence(self.path, os.fstat(self._file.fileno()))
        self._fragments += place(header, fragments, number=self._fragments + 1, seconds=seconds)
        self._append(fragments)
        if begins:
            self._appear()
        self._frames += len(frames)

    def mark(self) -> Mark:
        """Numbers of frames, bytes and fragments; the header's length and checksum; the colour matrix."""
        whole = {} if self._crc32 is None else {"crc32": self._crc32}
        return {
            **whole,
            "frames": self._frames,
            "bytes": self._bytes,
            "fragments": self._fragments,
            "header": self._header,
            "header_crc32": self._header_crc32,
            "matrix": self._matrix or 0,
        }

    def _check(self) -> None:
        """Refuse a file that does not match the mark."""
        with opened(self.path, mend="make it again with --overwrite") as file:
            try:
                header = file.read(self._header)
                whole = _checksum(file, self._bytes - self._header, zlib.crc32(header))
            except OSError as error:
                raise UserError(f"cannot continue {self.path}: {error.strerror}") from error
        if whole is None or zlib.crc32(header) != self._header_crc32 or self._crc32 not in (None, whole):
            raise UserError(f"{self.path} was cut or changed; make it again with --overwrite")

    def _open(self, header: bytes) -> BinaryIO:
        """A new file beside its path with only `header`, or the file at its path, cut after the mark."""
        if not self._bytes:
            self._temporary.unlink(missing_ok=True)
            file = self._temporary.open("xb", buffering=0)
            file.write(header)
            self._bytes = self._header = len(header)
            self._crc32 = self._header_crc32 = zlib.crc32(header)
            return file
        if zlib.crc32(header) != self._header_crc32:
            raise UserError(f"another encoder wrote {self.path}; make it again with --overwrite")
        file = self.path.open("r+b", buffering=0)
        file.truncate(self._bytes)
        return file

    def _appear(self) -> None:
        """Rename the new file, which has its first frames, to its path."""
        if self._clear is not None:
            self._clear(())
        self._temporary.replace(self.path)

    def _append(self, fragments: bytearray) -> None:
        assert self._file is not None
        for start, piece in ((HEAD, fragments[HEAD:]), (0, fragments[:HEAD])):
            self._file.seek(self._bytes + start)
            left = memoryview(piece)
            while left:  # an unbuffered file may write only a part
                left = left[self._file.write(left) :]
        self._bytes += len(fragments)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(fragments, self._crc32)

    def close(self) -> None:
        """Close the file; one that could not even take its first frames is removed."""
        if self._file is not None:
            self._file.close()
            if not self._frames:
                self._temporary.unlink(missing_ok=True)


MP4 = SinkKind(
    what="an .mp4 file",
    takes=lambda path: path.suffix.lower() == ".mp4",
    open=partial(Mp4Sink, frames_per_second=FRAMES_PER_SECOND),
)


def _checksum(file: BinaryIO, count: int, begun: int) -> int | None:
    """CRC-32, continued from `begun`, of the next `count` bytes of `file`; None if it has fewer."""
    while count:
        piece = file.read(min(count, PIECE))
        if not piece:
            return None
        begun, count = zlib.crc32(piece, begun), count - len(piece)
    return begun
