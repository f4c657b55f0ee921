"""Where each chunk of a stream lies in its file."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from plugins.atomic_files import atomic_write_text
from plugins.documents.regular_file import read_text
from plugins.errors import UserError

LARGEST = 2**30
"""Bytes of an index: a year of chunks."""


@dataclass(frozen=True)
class StoredChunk:
    """The place of a chunk in a stream's file, in bytes."""

    number: int
    start: int
    end: int
    frames: int


class ChunkIndex:
    """The place of each chunk in the file: ten bytes a chunk in memory, a line a chunk on disk."""

    def __init__(self, path: Path, first: int) -> None:
        """Read the index; a last line that a crash left unfinished is dropped.

        Raises:
            UserError: if a line is damaged.
        """
        self._path, self.first = path, first
        self._ends, self._frames = array("Q"), array("H")
        try:
            self._read()
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def _read(self) -> None:
        lines = read_text(self._path, largest=LARGEST).split("\n")[:-1] if self._path.exists() else []
        for line in lines:
            end, frames = map(int, line.split())
            if end <= self.bytes:
                raise ValueError(f"a chunk ends at {end}, before it begins")
            self._frames.append(frames)
            self._ends.append(end)

    @property
    def next(self) -> int:
        """The number of the chunk that comes next."""
        return self.first + len(self._ends)

    def add(self, end: int, frames: int) -> None:
        """Record that the next chunk, of `frames` frames, is in the file up to the byte `end`."""
        with self._path.open("a") as file:
            file.write(f"{end} {frames}\n")
        self._frames.append(frames)
        self._ends.append(end)  # appended last, so that readers on other threads see it complete

    def cut(self, end: int) -> None:
        """Forget chunks past the byte `end` of the file."""
        kept = bisect_right(self._ends, end)
        del self._ends[kept:], self._frames[kept:]
        lines = (f"{end} {frames}\n" for end, frames in zip(self._ends, self._frames, strict=True))
        atomic_write_text(self._path, "".join(lines))

    def __getitem__(self, number: int) -> StoredChunk:
        """The place of chunk `number`; that of the first one includes the head of the file."""
        at = number - self.first
        start = self._ends[at - 1] if at else 0
        return StoredChunk(number, start, self._ends[at], self._frames[at])

    @property
    def bytes(self) -> int:
        """Length of the file in bytes, up to the end of the last chunk."""
        return self._ends[-1] if self._ends else 0

    @property
    def frames(self) -> int:
        """Number of frames in the file."""
        return sum(self._frames)
