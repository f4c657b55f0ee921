"""A call in a process of its own, forked from one that has everything loaded: milliseconds, and no harm done.

What it asks of memory and time is bounded, and a death by signal is only its own. The process that forks
must not have computed anything: threads of a pool do not survive a fork.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from faults.contract import Ended

MEMORY = 2**30
"""Bytes of address space that a run may ask for beside what it began with."""
HOMES = ("HOME", "TMPDIR", "XDG_DATA_HOME", "XDG_CACHE_HOME")
POLL_SECONDS = 0.003
BUSY = 6
"""A machine that does other things too may take so many times as long as the process computes."""


def run_alone(
    call: Callable[[], object], folder: Path, *, seconds: float, memory: int | None = MEMORY
) -> Ended:
    """Call `call` with `folder` as working directory and home; it is killed after `seconds` of computing."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(call, folder, said.fileno(), complained.fileno(), memory)
        status, hung = _wait(child, seconds)
        texts = []
        for file in (said, complained):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(
        status=status, said=texts[0], complained=texts[1], hung=hung, seconds=time.monotonic() - began
    )


def _wait(child: int, seconds: float) -> tuple[int, bool]:
    """Its exit status, and whether it had to be killed."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds or (
        passed < BUSY * seconds and _computed(child) < seconds
    ):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True


def _computed(child: int) -> float:
    """Seconds of a processor that a process has had."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _become(call: Callable[[], object], folder: Path, said: int, complained: int, memory: int | None) -> None:
    """The rest of a forked process."""
    status = 1
    try:
        _confine(folder, said, complained, memory)
        call()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does with whatever reaches it
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # waits for other threads, as a process does that ends
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status & 0xFF)


def _confine(folder: Path, said: int, complained: int, memory: int | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(dict.fromkeys(HOMES, str(folder / "home")))
    tempfile.tempdir = None
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(complained, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
