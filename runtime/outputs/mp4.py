"""H.264 in a fragmented MP4 that plays while it is being written, whatever happens to the writer.

What one call of `write` brings is in the file when the call returns, as fragments of its own that
depend on nothing before or after them. A fragment's first eight bytes come last: until then, players
take what lies there for an unknown box that reaches to the end of the file, and pass it over.
"""

from __future__ import annotations

import errno
import os
import zlib
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

from plugins.errors import UserError
from runtime.outputs import Frames, Mark
from runtime.outputs.kind import SinkKind
from runtime.outputs.mp4_fragment import encode, place
from vmla.config import FRAMES_PER_SECOND

HEAD = 8
"""Bytes of a box's size and type."""
PIECE = 1 << 20
"""Bytes read at a time."""


class Mp4Sink:
    """One video file; it appears with its first frame."""

    def __init__(
        self, path: Path, *, frames_per_second: int, scale: int = 1, after: Mark | None = None
    ) -> None:
        """Write to `path`, each frame enlarged `scale` times; go on `after` the mark of another sink.

        Raises:
            UserError: if the file is not the one that the mark was made of.
        """
        self.path = path
        self._rate, self._scale = frames_per_second, scale
        self._file: BinaryIO | None = None
        start = after or dict.fromkeys(("frames", "bytes", "fragments", "header", "header_crc32"), 0)
        self._frames, self._bytes, self._fragments = start["frames"], start["bytes"], start["fragments"]
        self._header, self._header_crc32 = start["header"], start["header_crc32"]
        self._crc32: int | None = after.get("crc32") if after else 0
        """Of all bytes so far; None if the file was begun by a version that did not count it."""
        if self._bytes:
            self._check()

    def write(self, frames: Frames) -> None:
        """Encode [n, H, W, 3] frames and append them.

        Raises:
            OSError: if the file cannot be written.
            UserError: if the encoder is not the one that wrote the file so far.
        """
        if not len(frames):
            return
        header, fragments = encode(frames, rate=self._rate, scale=self._scale)
        if self._file is None:
            self._file = self._open(header)
        seconds = Fraction(self._frames, self._rate)
        self._fragments += place(header, fragments, number=self._fragments + 1, seconds=seconds)
        self._append(fragments)
        self._frames += len(frames)

    def mark(self) -> Mark:
        """Frames, bytes and fragments in the file; length and checksum of its header, checksum of all."""
        whole = {} if self._crc32 is None else {"crc32": self._crc32}
        return {
            **whole,
            "frames": self._frames,
            "bytes": self._bytes,
            "fragments": self._fragments,
            "header": self._header,
            "header_crc32": self._header_crc32,
        }

    def _check(self) -> None:
        """Refuse a file that is not what the mark says."""
        try:
            with self.path.open("rb") as file:
                header = file.read(self._header)
                whole = _checksum(file, self._bytes - self._header, zlib.crc32(header))
        except OSError as error:
            raise UserError(f"cannot go on with {self.path}: {error.strerror}") from error
        if whole is None or zlib.crc32(header) != self._header_crc32 or self._crc32 not in (None, whole):
            raise UserError(f"{self.path} was cut or changed; make it anew with --overwrite")

    def _open(self, header: bytes) -> BinaryIO:
        """The file with nothing but `header`, or cut behind the mark."""
        if not self._bytes:
            file = self.path.open("wb", buffering=0)
            file.write(header)
            self._bytes = self._header = len(header)
            self._crc32 = self._header_crc32 = zlib.crc32(header)
            return file
        if zlib.crc32(header) != self._header_crc32:
            raise UserError(f"another encoder wrote {self.path}; make it anew with --overwrite")
        file = self.path.open("r+b", buffering=0)
        file.truncate(self._bytes)
        return file

    def _append(self, fragments: bytearray) -> None:
        assert self._file is not None
        if not os.fstat(self._file.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the file was removed or replaced")
        for start, piece in ((HEAD, fragments[HEAD:]), (0, fragments[:HEAD])):
            self._file.seek(self._bytes + start)
            left = memoryview(piece)
            while left:  # a raw file may take a part
                left = left[self._file.write(left) :]
        self._bytes += len(fragments)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(fragments, self._crc32)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


MP4 = SinkKind(
    what="an .mp4 file",
    takes=lambda path: path.suffix.lower() == ".mp4",
    open=partial(Mp4Sink, frames_per_second=FRAMES_PER_SECOND),
)


def _checksum(file: BinaryIO, count: int, begun: int) -> int | None:
    """CRC-32, `begun` by what came before, of the next `count` bytes of `file`; None if it has fewer."""
    while count:
        piece = file.read(min(count, PIECE))
        if not piece:
            return None
        begun, count = zlib.crc32(piece, begun), count - len(piece)
    return begun
