"""Damage files and watch what the commands make of them.

python -m tests.faults --count 3000 --seed 0 --report docs/faults.md

Ctrl-C and SIGTERM end it early, with the figures so far.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from faults.campaign import Campaign, Trial, show  # noqa: E402 - the path comes first
from faults.report import write_report  # noqa: E402


def main() -> int:
    """The number of failures as exit status, 1 at most."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--count", type=int, default=300, help="how many files to damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="a run that takes longer has hung (default: 20 or 60)")
    parser.add_argument("--report", type=Path, help="Markdown file that gets the figures")
    parser.add_argument("--only", type=int, help="show one trial in full")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, trials = time.monotonic(), list[Trial]()
    with Campaign(asked.seed, asked.seconds) as campaign:
        for trial in campaign.undamaged() if asked.count > 500 else ():
            trials.append(trial)
            show(trial)
        if asked.only is not None:
            (trial,) = list(campaign.run(asked.only + 1, first=asked.only))
            sys.stdout.write(f"{trial}\n{trial.ended.said}{trial.ended.complained}")
            return int(bool(trial.faults))
        with suppress(KeyboardInterrupt):  # what was tried so far is what a smaller count would have tried
            for trial in campaign.run(asked.count):
                trials.append(trial)
                if trial.faults:
                    show(trial)
                elif len(trials) % 100 == 0:
                    sys.stderr.write(f"{len(trials)} tried\n")
    failed = sum(bool(trial.faults) for trial in trials)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{len(trials)} tried, {failed} failed, {seconds:.0f} s\n")
    if asked.report is not None:
        write_report(asked.report, trials, seed=asked.seed)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
