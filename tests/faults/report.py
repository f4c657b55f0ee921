"""The figures of a campaign as a page of documentation."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from faults.campaign import Tally, Trial
from faults.surfaces import SURFACES

HEAD = """# Damaged files

Every format that `vmla-run`, `vmla-train`, `vmla-export` and `vmla-bench` read, damaged in every way that we
could think of, and given to the command that reads it. Whatever it is given, a command either takes it or
ends with one line on standard error and a status other than zero: no traceback, no death by signal, no hang,
nothing that a terminal would obey, no file outside the folder that it was given, nothing removed or changed,
no code run, less than 1 GiB asked for.

`python -m tests.faults --count {count} --seed {seed} --report docs/faults.md` made this page on {date}:
{count} files damaged, {failed} failed. {surfaces} of {ways} ways to call a command were tried; each run is a
process of its own.
"""


def write_report(path: Path, trials: list[Trial], *, seed: int) -> None:
    """Write the page."""
    failed = sum(bool(trial.faults) for trial in trials)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        HEAD.format(
            count=len(trials),
            seed=seed,
            date=date,
            failed=failed,
            surfaces=len({trial.surface.name for trial in trials}),
            ways=len(SURFACES),
        )
    ]
    for title, what in (("Command", "command"), ("Damage", "kind"), ("File", "file")):
        lines += [f"| {title} | tried | failed |", "|---|---|---|", *Tally.by(trials, what).rows(), ""]
    faults = Counter(fault for trial in trials for fault in trial.faults)
    if faults:
        rows = (f"| {name} | {count} |" for name, count in sorted(faults.items()))
        lines += ["| How it failed | |", "|---|---|", *rows]
    path.write_text("\n".join(lines).rstrip() + "\n")
