"""The log of a stage, one line of JSON for each step, and its speed for the progress line."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plugins.atomic_files import atomic_write_text
from plugins.documents.regular_file import read_text
from plugins.errors import UserError
from vmla.train.loop.throughput import Speed, Work

Report = Callable[[str], None]
"""Takes one line about the progress of the training."""

LARGEST = 2**30
"""Bytes of a log that are read at most: those of millions of steps."""
RECENT = 20
"""Steps over which the speed that is shown is averaged."""


class Speedometer:
    """Speed of each step, of the latest ones, and of all since the process began."""

    def __init__(self, peak: float, world: int) -> None:
        """`peak`: operations per second of this process's device."""
        self._peak, self._world = peak, world
        self._recent: deque[Work] = deque(maxlen=RECENT)
        self._all = Work()

    def add(self, work: Work) -> Speed:
        """Count one more step, and return its own speed."""
        self._recent.append(work)
        self._all += work
        return self._speed(work)

    @property
    def recent(self) -> Speed:
        """Speed over the latest steps, not over the whole run."""
        return self._speed(sum(self._recent, Work()))

    @property
    def whole(self) -> Speed:
        """Speed over all steps of this process."""
        return self._speed(self._all)

    def _speed(self, work: Work) -> Speed:
        return Speed.of(work, self._peak, self._world)


def record(step: int, loss: float, rate: float, seconds: float, speed: Speed) -> dict[str, Any]:
    """The line of one step; `seconds` counts from the start of the stage."""
    line = {"step": step, "loss": round(loss, 6), "rate": round(rate, 4), "seconds": round(seconds, 1)}
    return line | asdict(speed)


def last_record(log: Path) -> dict[str, Any] | None:
    """The latest line of a stage's log, None if nothing was logged yet."""
    found = records(log)
    return found[-1] if found else None


def mean_speed(log: Path) -> dict[str, float]:
    """Over all steps of a stage that were logged with their speed; empty if none was."""
    logged = [line for line in records(log) if "utilisation" in line]
    names = [field.name for field in fields(Speed)] if logged else []
    return {name: round(sum(line[name] for line in logged) / len(logged), 4) for name in names}


def records(log: Path) -> list[dict[str, Any]]:
    """The records on a log's complete lines; a process killed while writing leaves half a line at its end.

    Raises:
        UserError: if one of them is not the record of a step, naming it.
    """
    if not log.exists():
        return []
    lines = read_text(log, largest=LARGEST).split("\n")[:-1]
    return [_parsed(line, f"{log}, line {number}") for number, line in enumerate(lines, 1)]


def _parsed(line: str, where: str) -> dict[str, Any]:
    """The record on a line; its loss may be NaN, as that of a run that has diverged."""
    try:
        made = json.loads(line)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict) or type(made.get("step")) is not int:
        raise UserError(f"{where} is damaged; remove that line")
    return made


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that are about to be made again."""
    kept = [json.dumps(line) + "\n" for line in records(log) if line["step"] <= step]
    atomic_write_text(log, "".join(kept))
