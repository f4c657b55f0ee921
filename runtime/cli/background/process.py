"""Starts a process that outlives the command and its terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Starter = Callable[[str, Sequence[str], Path], int]
"""Runs a module of ours with arguments, its output appended to a log, and returns the process's id."""


def start_detached(module: str, arguments: Sequence[str], log: Path) -> int:
    """Run `python -m MODULE ARGUMENTS` in a session of its own; return its process id at once.

    In another session it hears no Ctrl-C of this terminal, and no hang-up when that is closed. It imports
    what this process would import, and never from a working directory only because it is one (`-P`).

    Raises:
        OSError: if `log` cannot be opened, or the system starts no process.
    """
    places = os.pathsep.join(place for place in sys.path if Path(place).is_absolute())
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is refused
    with os.fdopen(os.open(log, flags, 0o666), "ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONPATH": places},
        )  # fmt: skip
    return started.pid
