"""One live line on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live

from vmla.cli.terminal import printable


class ProgressLine:
    """Shows the latest of many messages: in place on a terminal, else every `seconds` seconds.

    A context manager; the last message is always shown.
    """

    def __init__(self, stream: TextIO, *, seconds: float = 10.0) -> None:
        self._stream = stream
        self._seconds = seconds
        self._live: Live | None = None
        self._shown_at = float("-inf")
        self._waiting: str | None = None

    def __enter__(self) -> ProgressLine:
        """Take the terminal's line, if there is a terminal."""
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), refresh_per_second=4)
            self._live.start()
        return self

    def show(self, message: str) -> None:
        """Make `message` the current one."""
        message = printable(message)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(message))  # a plain string is read as markup: prompts have brackets
            return
        self._waiting = message
        if time.monotonic() - self._shown_at >= self._seconds:
            self._flush()

    def _flush(self) -> None:
        if self._waiting is not None:
            self._stream.write(self._waiting + "\n")
            self._stream.flush()
            self._shown_at, self._waiting = time.monotonic(), None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show what is still unshown and give the line back."""
        if self._live is not None:
            self._live.stop()
        self._flush()
