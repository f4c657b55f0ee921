"""Damaged files by the hundred: drawn from a seed, each given to the command that reads it, and counted."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from faults.contract import OUTPUT, Ended, listing, violations
from faults.damage import Damage
from faults.formats import ways
from faults.isolated import run_alone
from faults.samples import write_samples
from faults.surfaces import LOADED, SURFACES, Surface

PREPARING_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A file that was damaged, and what became of the command that read it."""

    number: int
    surface: Surface
    file: str
    kind: str
    faults: tuple[str, ...]
    ended: Ended

    def __str__(self) -> str:
        """In one line, from which it can be found again."""
        said = (self.ended.complained.strip().splitlines() or ["nothing"])[-1]
        seen = said.encode("unicode_escape").decode()[:160]
        return (
            f"{self.number}: {', '.join(self.faults)}: {self.surface.name}: {self.file}: {self.kind}; "
            f"status {self.ended.status}, {self.ended.seconds:.1f} s: {seen}"
        )


class Campaign:
    """A context manager that holds the samples; the process must not have computed anything before."""

    def __init__(self, seed: int, seconds: float | None = None) -> None:
        """`seconds`: after which a run has hung; each surface's own if not given."""
        self._seed, self._seconds = seed, seconds

    def __enter__(self) -> Campaign:
        """Import everything and write the samples."""
        for name in LOADED:
            importlib.import_module(name)
        self._place = TemporaryDirectory(prefix="faults-")
        root = Path(self._place.name)
        self._samples, self._sandbox = root / "samples", root / "sandbox"
        for folder in (self._samples, root / "home", root / "home" / "home"):
            folder.mkdir()
        made = run_alone(
            lambda: write_samples(self._samples), root / "home", seconds=PREPARING_SECONDS, memory=None
        )
        if made.status:
            raise RuntimeError(f"the samples could not be made:\n{made.complained}")
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all files."""
        self._place.cleanup()

    def undamaged(self) -> Iterator[Trial]:
        """Every command on whole files; those that end with an error are no good to find others with."""
        for surface in SURFACES:
            trial = self._try(-1, surface, "nothing", None, Random(0))
            if surface.whole and trial.ended.status:
                trial = replace(trial, faults=(*trial.faults, "refused whole"))
            if trial.faults:
                yield trial

    def run(self, count: int, *, first: int = 0) -> Iterator[Trial]:
        """The trials up to number `count`; each depends on the seed and its number alone."""
        shares = [surface.share for surface in SURFACES]
        for number in range(first, count):
            luck = Random(f"{self._seed} {number}")
            (surface,) = luck.choices(SURFACES, shares)
            file = luck.choice(sorted(surface.files))
            damage = luck.choice(luck.choice(ways(surface.files[file])))
            yield self._try(number, surface, file, damage, luck)

    def _try(self, number: int, surface: Surface, file: str, damage: Damage | None, luck: Random) -> Trial:
        sandbox = self._sandbox
        shutil.rmtree(sandbox, ignore_errors=True)
        own = (OUTPUT,) if surface.own is None else (OUTPUT, surface.own)
        shutil.copytree(self._samples, sandbox, copy_function=partial(_placed, sandbox, own))
        for folder in (OUTPUT, "home"):
            (sandbox / folder).mkdir()
        if damage is not None:
            damage.apply(sandbox / file, luck)
        before = listing(sandbox)
        ended = run_alone(surface.call(), sandbox, seconds=self._seconds or surface.seconds)
        made = surface.makes and damage is not None and damage.kind == "missing"
        refused = damage is not None and damage.refused and not made
        found = violations(ended, before, listing(sandbox), refused=refused, own=own)
        return Trial(
            number=number, surface=surface, file=file, ended=ended, faults=tuple(found),
            kind="nothing" if damage is None else damage.kind,
        )  # fmt: skip


def _placed(root: Path, own: tuple[str, ...], source: str, target: str) -> None:
    """A link to the sample, or a copy where a command may write to it."""
    name = str(Path(target).relative_to(root))
    (shutil.copy2 if name.startswith(own) else os.link)(source, target)


@dataclass(frozen=True)
class Tally:
    """How many were tried and failed, by whatever they are counted by."""

    tried: Counter[str]
    failed: Counter[str]

    @classmethod
    def by(cls, trials: list[Trial], what: str) -> Tally:
        """Count by an attribute: `kind`, `file`, or `command`."""
        pairs = [
            (trial.surface.words[0] if what == "command" else str(getattr(trial, what)), trial)
            for trial in trials
        ]
        names = [name for name, _ in pairs]
        return cls(Counter(names), Counter(name for name, trial in pairs if trial.faults))

    def rows(self) -> Iterator[str]:
        """A table's rows in Markdown."""
        for name in sorted(self.tried):
            yield f"| {name} | {self.tried[name]} | {self.failed[name]} |"


def show(trial: Trial) -> None:
    """Print a trial."""
    sys.stdout.write(f"{trial}\n")
    sys.stdout.flush()
