"""Results files as one page that anyone can open, and as a summary to read in a terminal.

    vmla-bench report bench/results/*.json --against old/*.json

Writes `report.html` (plots, videos and pictures inside, nothing loaded from elsewhere) and `report.md`. Old
results stand beside new ones of the same kind and subject: their curves over the new ones, and every figure
that became worse by more than the noise marked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bench.report.comparison import Pairs, change_table, changes, heading, pair_up, verdicts
from bench.report.elements.table import plain
from bench.report.html_page import command, facts, html, section
from bench.report.schema.kinds import read_results
from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import shown
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say


def markdown(pairs: Pairs) -> str:
    """The summary of all documents, as Markdown."""
    lines = ["# Results"]
    for document, before in pairs:
        code = " ".join(command(document).replace("`", "'").split())
        lines += ["", f"## {plain(heading(document))}", "", plain(facts(document)), "", f"`{code}`"]
        tables = [*section(document).tables]
        if before is not None:
            tables.append(change_table(changes(document, before), document["kind"]))
        for table in tables:
            lines += ["", f"**{plain(table.title)}**", "", *table.markdown()]
    return "\n".join(lines) + "\n"


@click.command("report", cls=OneLineCommand)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", multiple=True, type=click.Path(path_type=Path),
              help="Old results file to compare with; repeat for several.")  # fmt: skip
@click.option(
    "--across-machines", is_flag=True, help="Compare old and new results even from different machines."
)
@click.option("--media", multiple=True, type=click.Path(path_type=Path),
              help="Video or picture to show in the page, such as a contact sheet; repeat for "
              "several.")  # fmt: skip
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), show_default=True,
              default=Path("build/report"), help="The folder for report.html and report.md.")  # fmt: skip
def main(
    results: tuple[Path, ...], against: tuple[Path, ...], across_machines: bool, media: tuple[Path, ...],
    output: Path,
) -> None:  # fmt: skip
    """Write a page and a summary from RESULTS, with old results beside new ones; exit with 1 if a file was
    left out because it is damaged."""
    left_out: list[str] = []
    new, old = (list(_readable(paths, left_out)) for paths in (results, against))
    if not new:
        raise UserError(left_out[0])
    for reason in left_out:
        say(f"left out: {reason}", err=True)
    pairs = pair_up(new, old, across=across_machines)
    page = html(pairs, media)
    output.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.html", page), ("report.md", markdown(pairs))):
        atomic_write_text(output / name, text)
    worse = verdicts(pairs, "worse")
    say(*(f"worse: {shown(name, 200)}" for name in worse), str(output / "report.html"))
    line = {"kind": "report", "output": str(output), "results": len(pairs), "worse": worse}
    say(json.dumps({**line, "left_out": len(left_out)}))
    if left_out:
        sys.exit(1)


def _readable(paths: Sequence[Path], left_out: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the documents of whole files; the error of each other file is added to `left_out`."""
    for path in paths:
        try:
            yield read_results(path)
        except UserError as error:
            left_out.append(str(error))


if __name__ == "__main__":
    main()
