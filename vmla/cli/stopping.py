"""How every command is stopped: Ctrl-C, SIGTERM and SIGHUP end it tidily, a second signal at once.

The first signal is raised as `Interrupted` in the main thread; work that checks by itself
whether it should end (inside `Stop.polled`) finds the event set instead. The second ends the process from a
thread of its own, so that no sink, decoder or queue that blocks can hold it up. The same happens `PATIENCE`
seconds after a first signal that was raised in vain, because something swallowed the exception.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0
"""Seconds that an interrupted command may take to tidy up before it is ended at once."""
LAST_WORDS = 1.0
"""Seconds that printing the last words may take: nobody may be reading the stream."""
_SHOW_CURSOR = "\x1b[?25h"
"""Terminal code that shows the cursor again, which a live line has hidden."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end; raised in the main thread."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
        """Exit status of the process, 128 + n as in shells."""


class Stop(threading.Event):
    """A context manager; set once a signal has asked the command to end."""

    def __init__(self, *, final: bool = False) -> None:
        """With `final` the process ends after the block: signals that still come end it without a word."""
        super().__init__()
        self._final = final
        self.number = 0
        """The signal's, once there was one."""
        self.last_words: Callable[[], Sequence[str]] = tuple
        """Returns what was saved and how to resume, as lines that are printed when a signal ends the
        command."""
        self.last_acts: Callable[[], object] = tuple
        """Called when the process is ended at once; it may take a second."""
        self._raising = self._raised = self._listening = False

    @property
    def status(self) -> int:
        """Exit status of a command that was stopped."""
        return 128 + self.number

    @property
    def name(self) -> str:
        """Name of the signal that stopped the command."""
        return signal.Signals(self.number).name

    def parting(self, what: str) -> list[str]:
        """The last words, each preceded by `what` has happened; `what` alone if there are none."""
        return [f"{what}; {words}" for words in self.last_words()] or [what]

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, the first signal raises `Interrupted`, even one that came before the block.

        Raises:
            Interrupted: by the first signal.
        """
        with self._set_raising(True):
            if self.is_set():
                self._handle(self.number, None)
            yield

    @contextmanager
    def polled(self) -> Iterator[None]:
        """Inside, and before `raised`, the first signal only sets the event, which the work has to check."""
        with self._set_raising(False):
            yield

    @contextmanager
    def _set_raising(self, value: bool) -> Iterator[None]:
        before, self._raising = self._raising, value
        try:
            yield
        finally:
            self._raising = before

    def __enter__(self) -> Stop:
        """Listen to signals, if this is the main thread: no other one can."""
        self._listening = threading.current_thread() is threading.main_thread()
        if self._listening:
            # A process that ignores SIGHUP was started by nohup, to outlive the terminal: leave that as it
            # is.
            heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._former_pipe = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._watcher.start()
            self._former = {number: signal.signal(number, self._handle) for number in heard}
            forget = weakref.WeakMethod(self._forget)
            os.register_at_fork(after_in_child=lambda: (method := forget()) and method())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the signal handlers that were there before, unless the process ends here."""
        if not self._listening:
            return
        self._listening = False
        for number, former in self._former.items():
            signal.signal(number, _leave_silently if self._final else former)
        signal.set_wakeup_fd(self._former_pipe)
        os.write(self._write, b"\0")
        self._watcher.join()
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Python's own handler, which it runs in the main thread between two instructions."""
        if self._raising and not self._raised:
            self._raised = True
            raise Interrupted(number)

    def _watch(self) -> None:
        """Wait for signals whatever the main thread does: the system writes their numbers to a pipe."""
        leave_at = None
        while True:
            left = None if leave_at is None else max(0.0, leave_at - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                self._leave(self.number)
            number = os.read(self._read, 1)[0]
            if number == 0:
                return
            if number not in SIGNALS:
                continue
            if self.is_set():
                self._leave(number)
            self.number = number
            if self._raising or self._raised:
                leave_at = time.monotonic() + PATIENCE
            self.set()

    def _leave(self, number: int) -> None:
        """End the process, and the processes that it has started."""
        try:
            last = threading.Thread(target=self._say_and_do, name="last-words", daemon=True)
            last.start()
            last.join(LAST_WORDS)
            _end_children()
        finally:
            os._exit(128 + number)

    def _say_and_do(self) -> None:
        with suppress(OSError):
            lines = "".join(f"{line}\n" for line in self.parting("stopped"))
            os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}\n{lines}".encode())
        self.last_acts()

    def _forget(self) -> None:
        """In a process forked from this one: signals are not this command's any more."""
        if self._listening:
            self._listening = False
            signal.set_wakeup_fd(-1)
            for number in self._former:
                signal.signal(number, signal.SIG_DFL)


def _leave_silently(number: int, frame: FrameType | None) -> None:
    """End a process that is ending anyway: everything is saved and said, and Python would add a traceback."""
    os._exit(128 + number)


def _end_children() -> None:
    """Ask the processes that this one has started to end, where the system tells which they are."""
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(OSError):
                os.kill(int(child), signal.SIGTERM)
