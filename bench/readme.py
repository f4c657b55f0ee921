"""The README's tables, made from the committed results so that no figure in it is typed by hand.

    python -m bench.readme          rewrite the tables
    python -m bench.readme --check  fail if they differ from the results
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vmla.command import OneLineCommand
from vmla.errors import UserError
from vmla.train.card import grade_rows
from vmla.weights.files import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
MISSING = "not measured yet"


def rollout_table(result: dict[str, Any]) -> list[str]:
    """Speed and memory of one whole video."""
    memory = result["resident_bytes"]
    rows = [
        ("three minutes of video, from the command to the whole file", f"{result['wall_seconds']:.0f} s"),
        ("first frame in the file", f"{result['first_frame_seconds']:.1f} s"),
        ("times real time", f"{result['times_real_time']:.1f}"),
        ("most memory the process ever held", f"{result['peak_bytes'] / 2**20:.0f} MiB"),
        ("growth of memory from minute 1 to minute 3", f"{memory['growth']:.1%}"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), "", _where(result)]


def grades_table(result: dict[str, Any]) -> list[str]:
    """Shares of held-out prompts that pass each question, over time."""
    return [*grade_rows(result["grades"]), "", f"{result['prompts']} held-out prompts. {_where(result)}"]


def _where(result: dict[str, Any]) -> str:
    return f"{result['machine']['hardware']}, torch {result['versions']['torch']}, {result['date']}."


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "rollout": ("rollout-sprites.json", rollout_table),
    "grades": ("grades-sprites.json", grades_table),
}
"""For each marked block of the README, its results file and how it becomes a table."""


def render(text: str) -> str:
    """`text` with every block `<!-- results: NAME --> ... <!-- end -->` made anew.

    Raises:
        UserError: for a block without a table.
    """

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise UserError(f"README.md has a block {name!r}; known are {', '.join(TABLES)}")
        file, table = TABLES[name]
        path = RESULTS / file
        lines = table(read_json(path)) if path.exists() else [MISSING]
        return "\n".join([f"<!-- results: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


@click.command(cls=OneLineCommand)
@click.option("--check", is_flag=True, help="Change nothing; fail if a table differs.")
def main(check: bool) -> None:
    """Make the README's tables from bench/results."""
    path = ROOT / "README.md"
    old = path.read_text()
    new = render(old)
    if check and new != old:
        raise UserError("the README's tables differ from bench/results; run: python -m bench.readme")
    if new != old:
        aside = path.with_suffix(".tmp")
        aside.write_text(new)
        aside.replace(path)


if __name__ == "__main__":
    main()
