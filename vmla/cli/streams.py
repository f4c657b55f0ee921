"""Standard output and standard error that never end a command: output that cannot be written is dropped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class ForgivingStream:
    """A stream, of text or bytes, that falls silent once it cannot be written to: closed, full, not read."""

    def __init__(self, stream: Any, *, silent: bool = False) -> None:
        self._stream = stream
        self.silent = silent
        """Whether the stream cannot be written to (any more)."""

    def __getattr__(self, name: str) -> Any:
        """Every other attribute is that of the wrapped stream."""
        return getattr(self._stream, name)

    @property
    def buffer(self) -> ForgivingStream:
        """The binary stream below a text stream, for callers that encode text themselves."""
        return ForgivingStream(self._stream.buffer)

    def write(self, text: Any) -> int:
        """Write `text` if it can be."""
        if not self.silent:
            try:
                return int(self._stream.write(text))
            except UnicodeEncodeError:
                known = self._stream.encoding
                return int(self._stream.write(text.encode(known, "backslashreplace").decode(known)))
            except (OSError, ValueError):  # a stream that is closed raises ValueError
                self._fall_silent()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all `lines` if they can be."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream, if that is possible."""
        if not self.silent:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._fall_silent()

    def _fall_silent(self) -> None:
        """Redirect the descriptor to nowhere, so that buffered text cannot fail when Python exits either."""
        self.silent = True
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` fall silent instead of failing."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:  # None: the stream was closed when the process started
        streams = [ForgivingStream(stream or nowhere, silent=stream is None) for stream in before]
        sys.stdout, sys.stderr = streams  # type: ignore[assignment]
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before


def _fill_closed() -> None:
    """Occupy the numbers of closed standard streams, or a file opened later would get one of them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
