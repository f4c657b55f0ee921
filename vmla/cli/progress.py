"""Progress: one live line on a terminal and plain lines elsewhere; phases of unknown length as a bar."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

from vmla.cli.terminal import one_line, printable


class ProgressLine:
    """Shows the latest of many messages: in place on a terminal, else every `seconds` seconds.

    A context manager; the last message is always shown.
    """

    def __init__(self, stream: TextIO, *, seconds: float = 10.0) -> None:
        self._stream = stream
        self._quiet = not logging.getLogger(__name__).isEnabledFor(logging.WARNING)
        self._began: tuple[float, float] | None = None
        """When a share of the work was first reported, and that share: the rate is measured from there."""
        self._seconds = seconds
        self._live: Live | None = None
        self._shown_at = float("-inf")
        self._waiting: str | None = None

    def __enter__(self) -> ProgressLine:
        """Take the terminal's line, if there is a terminal."""
        if self._stream.isatty() and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            # Otherwise rich would redirect output meant for a pipe to the terminal.
            self._live = Live(console=console, refresh_per_second=4, redirect_stdout=sys.stdout.isatty())
            self._live.start()
        return self

    def show(self, message: str, *, done: float | None = None) -> None:
        """Make `message` the current one; `done` in [0, 1] is the finished share of the work, if known."""
        message = one_line(message)
        if self._quiet:
            return
        if self._live is not None:
            from rich.text import Text

            # A plain string is read as markup, and prompts have brackets; a line stays one line.
            text = Text(message, no_wrap=True, overflow="ellipsis")
            self._live.update(text if done is None else self._with_bar(text, done))
            return
        self._waiting = message
        if time.monotonic() - self._shown_at >= self._seconds:
            self._flush()

    def _with_bar(self, text: Text, done: float) -> Table:
        """A bar, per cent and the time left, before the message."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = time.monotonic()
        began, before = self._began = self._began or (now, done)
        left = (1 - done) * (now - began) / (done - before) if done > before else None
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=done, width=20), f"{done:4.0%}", _time_left(left), text)
        return row

    def _flush(self) -> None:
        if self._waiting is not None:
            self._stream.write(self._waiting + "\n")
            self._stream.flush()
            self._shown_at, self._waiting = time.monotonic(), None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last message if it was not shown yet, and release the terminal's line."""
        if self._live is not None:
            self._live.stop()
        self._flush()


class PhaseBar:
    """On a terminal, the phase of the work that is under way and for how long; nothing anywhere else.

    The bar moves to and fro until a phase says how far it is. A context manager; lines that are printed
    meanwhile appear above it.
    """

    def __init__(self, stream: TextIO) -> None:
        quiet = not logging.getLogger(__name__).isEnabledFor(logging.WARNING)
        self._stream = stream if stream.isatty() and not quiet else None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> PhaseBar:
        """Take the terminal's last line, if there is a terminal."""
        if self._stream is not None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(file=self._stream), transient=True, redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            self._progress.start()
        return self

    def begin(self, phase: str) -> None:
        """Show `phase` as the one under way."""
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(printable(phase), total=None)

    def advance(self, done: int, total: int) -> None:
        """Show that `done` parts of `total` of the phase under way are finished."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Erase the bar and release the terminal's line."""
        if self._progress is not None:
            self._progress.stop()


def _time_left(seconds: float | None) -> str:
    """Minutes and seconds, or nothing while that is not known."""
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
