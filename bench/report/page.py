"""Results files as one page that anyone can open, and as a summary to read in a terminal.

    vmla-bench report bench/results/*.json --against old/*.json

Writes `report.html` (plots inside, nothing loaded from elsewhere) and `report.md`. Old results stand beside
new ones of the same kind and subject; a figure that became worse by more than the noise is marked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import click

from bench.harness.document import machine_name
from bench.report import svg
from bench.report.elements.engine_filter import choice, engines_of
from bench.report.elements.media import gallery
from bench.report.elements.table import Section, Table, plain
from bench.report.figures import Figure, figures
from bench.report.schema.kinds import read_results
from bench.report.sections import SECTIONS
from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import shown
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say

TOLERANCE = 0.05
"""By which a figure without a known spread may change before it is called worse."""
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}code{background:#f3f3f3}"
    ".worse{background:#ffd9d2}.better{background:#d9f2dd}svg,img,video{max-width:100%;height:auto}"
    "figure{display:inline-block;margin:.5em}video{min-width:16em;image-rendering:pixelated}"
    ".filter{position:sticky;top:0;background:#fff;padding:.5em 0;border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure, then and now."""

    name: str
    old: Figure
    new: Figure

    @property
    def ratio(self) -> float:
        """The new figure as a multiple of the old one."""
        return self.new.value / self.old.value

    @property
    def verdict(self) -> str:
        """`worse`, `better`, or `same` within the noise of both."""
        noise = 3 * (self.old.spread**2 + self.new.spread**2) ** 0.5 or TOLERANCE
        change = self.ratio - 1 if self.new.more_is_better else 1 - self.ratio
        if abs(change) <= noise:
            return "same"
        return "better" if change > 0 else "worse"


def key(document: dict[str, Any]) -> tuple[str, str]:
    """What may be compared: the kind of benchmark, and what it measured."""
    return document["kind"], str(document.get("subject") or document.get("checkpoint") or "")


def changes(new: dict[str, Any], old: dict[str, Any]) -> list[FigureChange]:
    """The figures that both have."""
    now, then = figures(new), figures(old)
    return [
        FigureChange(name=name, old=then[name], new=figure)
        for name, figure in now.items()
        if name in then and then[name].value
    ]


def pair_up(
    new: list[dict[str, Any]], old: list[dict[str, Any]], *, across: bool
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each new document with the old one of its kind and subject.

    Raises:
        UserError: if they come from different machines and `across` is not set.
    """
    earlier = {key(document): document for document in old}
    pairs = [(document, earlier.get(key(document))) for document in new]
    for document, before in pairs:
        if before is not None and machine_name(document) != machine_name(before) and not across:
            names = f"{machine_name(before)} and {machine_name(document)}"
            mend = "say --across-machines if you mean it"
            raise UserError(f"{document['kind']}: old and new are from {names}; {mend}")
    return pairs


def heading(document: dict[str, Any]) -> str:
    """The heading of a document: its kind and what it is about."""
    return ": ".join(part for part in key(document) if part)


def facts(document: dict[str, Any]) -> str:
    """Where and when a document was measured."""
    whole = "" if document.get("complete", True) else " Interrupted: the last stages are missing."
    commit = document["commit"][:10]
    versions = f"torch {document['versions']['torch']}"
    return f"{machine_name(document)}; {versions}; commit {commit}; {document['date']}.{whole}"


def command(document: dict[str, Any]) -> str:
    """The line that measures it again."""
    return str(document.get("command", f"vmla-bench {document['kind']}"))


def _code(document: dict[str, Any]) -> str:
    """Its command between back quotes."""
    return " ".join(command(document).replace("`", "'").split())


BY_ENGINE = ("engines", "gpu")
"""Kinds whose figures begin with the name of an engine."""


def change_table(found: list[FigureChange], kind: str) -> Table:
    """Old and new side by side."""
    rows = [
        [c.name, f"{c.old.value:.4g}", f"{c.new.value:.4g}", f"{c.ratio - 1:+.1%}", c.verdict] for c in found
    ]
    headings = ["figure", "old", "new", "change", ""]
    return Table(
        title="against the old results", headings=headings, rows=rows, by_engine=kind in BY_ENGINE
    )  # fmt: skip


def change_plot(found: list[FigureChange], kind: str) -> str:
    """Every new figure as a multiple of the old one, with the spread of both."""
    shown = [
        (c.name, c.ratio, c.ratio * (c.old.spread**2 + c.new.spread**2) ** 0.5 or None) for c in found
    ]  # fmt: skip
    return svg.bars("new over old; 1 is unchanged", shown, "", by_engine=kind in BY_ENGINE)


def markdown(pairs: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> str:
    """The summary of all documents, as Markdown."""
    lines = ["# Results"]
    for document, before in pairs:
        lines += [
            "",
            f"## {plain(heading(document))}",
            "",
            plain(facts(document)),
            "",
            f"`{_code(document)}`",
        ]
        tables = [*_section(document).tables]
        if before is not None:
            tables.append(change_table(changes(document, before), document["kind"]))
        for table in tables:
            lines += ["", f"**{plain(table.title)}**", "", *table.markdown()]
    return "\n".join(lines) + "\n"


def html(pairs: list[tuple[dict[str, Any], dict[str, Any] | None]], media: Sequence[Path] = ()) -> str:
    """The page of all documents and of files of `media`, as HTML that loads nothing.

    Raises:
        UserError: for a file of `media` that cannot be shown.
    """
    body = [choice(engines_of([document for document, _ in pairs])), gallery(media)]
    body += [part for document, before in pairs for part in _html_section(document, before)]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>VideoMLA: results</title><style>{STYLE}"
    return "\n".join([f"{head}</style>", "<h1>Results</h1>", *body, "</html>\n"])


def _html_section(document: dict[str, Any], before: dict[str, Any] | None) -> Iterator[str]:
    section = _section(document)
    yield f"<h2>{escape(heading(document))}</h2>"
    yield f"<p>{escape(facts(document))}<br><code>{escape(command(document))}</code></p>"
    yield from section.plots
    for table in section.tables:
        yield table.html()
    if before is not None:
        yield f"<p>Old: {escape(facts(before))}</p>"
        if found := changes(document, before):
            yield change_plot(found, document["kind"])
            yield change_table(found, document["kind"]).html()


def _section(document: dict[str, Any]) -> Section:
    """The tables and plots of a kind; of an unknown one, nothing but its figures."""
    make = SECTIONS.get(document["kind"])
    return make(document) if make else Section(tables=[], plots=[])


def regressions(pairs: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> list[str]:
    """The names of what became worse."""
    return [
        f"{heading(document)}: {change.name}"
        for document, before in pairs
        if before is not None
        for change in changes(document, before)
        if change.verdict == "worse"
    ]


@click.command("report", cls=OneLineCommand)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", multiple=True, type=click.Path(path_type=Path),
              help="Old results file to compare with; repeat for several.")  # fmt: skip
@click.option(
    "--across-machines", is_flag=True, help="Compare old and new results even from different machines."
)
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), show_default=True,
              default=Path("build/report"), help="The folder for report.html and report.md.")  # fmt: skip
@click.option("--media", multiple=True, type=click.Path(path_type=Path),
              help="Video or picture to show in the page, such as a contact sheet; repeat for "
              "several.")  # fmt: skip
def main(
    results: tuple[Path, ...], against: tuple[Path, ...], across_machines: bool, output: Path,
    media: tuple[Path, ...],
) -> None:  # fmt: skip
    """One page and one summary from RESULTS, with old results beside new ones; exits with 1 if a file was
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
    worse = regressions(pairs)
    say(*(f"worse: {shown(name, 200)}" for name in worse), str(output / "report.html"))
    line = {"kind": "report", "output": str(output), "results": len(pairs), "worse": worse}
    say(json.dumps({**line, "left_out": len(left_out)}))
    if left_out:
        sys.exit(1)


def _readable(paths: Sequence[Path], left_out: list[str]) -> Iterator[dict[str, Any]]:
    """The results files that are whole; what is wrong with each other one goes to `left_out`."""
    for path in paths:
        try:
            yield read_results(path)
        except UserError as error:
            left_out.append(str(error))


if __name__ == "__main__":
    main()
