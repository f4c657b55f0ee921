"""What every command promises, whatever it is given, and how a run of it broke that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LONGEST_LINE = 2000
"""Characters of a message that a person still reads."""
CONTROL = re.compile(r"[^\S\n ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey and not show; the ends of lines and plain spaces are no harm."""
CLICKS_OWN = ("Usage:", "Try ")
"""How the lines begin that click puts before what is wrong with a command line."""
NO_MEMORY = ("MemoryError", "bad_alloc", "can't allocate memory", "not enough memory")
EXECUTED = "EXECUTED"
"""The folder that code in a damaged file would make."""
OUTPUT = "out"
"""The folder of a sandbox that a command was given to write to."""

Listing = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    status: int
    """Negative for a signal."""
    said: str
    """On standard output."""
    complained: str
    """On standard error."""
    hung: bool
    seconds: float


def listing(folder: Path) -> Listing:
    """Mode, size and time of every file below `folder`, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        # The time of a folder changes with what is made in it, which has a line of its own.
        when = 0 if path.is_dir() and not path.is_symlink() else state.st_mtime_ns
        found[str(path.relative_to(folder))] = (state.st_mode, 0 if when == 0 else state.st_size, when)
    return found


def violations(
    ended: Ended, before: Listing, after: Listing, *, refused: bool, own: tuple[str, ...] = (OUTPUT,)
) -> Iterator[str]:
    """The kinds of fault in how a run `ended`, none if all is well.

    Args:
        ended: the run.
        before, after: what lay in its sandbox.
        refused: whether nobody could have used what it was given.
        own: how the paths begin that it may write to.
    """
    if any(Path(name).name == EXECUTED for name in after.keys() - before.keys()):
        yield "executed"
    yield from _on_disk(before, after, own)
    if ended.hung:
        yield "hang"
        return
    text = ended.complained
    if any(word in text for word in NO_MEMORY):
        yield "memory"
    elif "Traceback (most recent call last)" in text:
        yield "traceback"
    elif ended.status < 0:
        yield "signal"
    elif ended.status == 0 and refused:
        yield "accepted"
    elif ended.status:
        yield from _refusal(text)
    if CONTROL.search(text) or CONTROL.search(ended.said):
        yield "control characters"


def _refusal(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith((*CLICKS_OWN, "warning: "))]
    if not lines:
        yield "silent"
    elif len(lines) > 1:
        yield "several lines"
    elif len(lines[0]) > LONGEST_LINE:
        yield "endless line"


def _on_disk(before: Listing, after: Listing, own: tuple[str, ...]) -> Iterator[str]:
    """Files that were made outside the given folder, or that are gone or changed."""
    made = {name for name in after.keys() - before.keys() if Path(name).name != EXECUTED}
    if not all(name.startswith(own) for name in made):
        yield "written outside"
    kept = {name for name in before if not name.startswith(own)}
    if not kept <= after.keys():
        yield "removed"
    elif any(after[name] != before[name] for name in kept):
        yield "changed"
