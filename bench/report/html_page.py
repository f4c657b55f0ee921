"""The page of a report: a contents list, a choice of engine, videos, and a part for each document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.harness.document import machine_name
from bench.report.comparison import FigureChange, Pairs, change_plot, change_table, changes, heading, verdicts
from bench.report.elements.engine_filter import choice, engines_of
from bench.report.elements.media import gallery
from bench.report.elements.table import Section
from bench.report.sections.kinds import SECTIONS

STYLE = """
:root{--ink:#1d2733;--quiet:#5f6b7a;--line:#dfe4ea;--paper:#fff;--shade:#f5f7f9}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--shade);margin:0}
header,main{max-width:74em;margin:0 auto;padding:1.2em 1.5em}
h1{margin:0;font-size:1.7em}h2{margin:0;font-size:1.25em}h3{margin:1.2em 0 .3em;font-size:1em}
.quiet{color:var(--quiet);font-size:.9em;margin:.2em 0 .8em}
section{background:var(--paper);border:1px solid var(--line);border-radius:8px;
padding:1.1em 1.3em;margin:0 0 1.2em}
nav{display:flex;flex-wrap:wrap;gap:.3em .5em;margin:.8em 0 0}
nav a{color:inherit;text-decoration:none;border:1px solid var(--line);border-radius:1em;padding:.1em .8em;
background:var(--paper);font-size:.9em}nav a:hover{border-color:var(--quiet)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93em}
td,th{padding:.25em .8em;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--quiet);font-weight:600;white-space:normal;vertical-align:bottom}
td:first-child,th:first-child{text-align:left;padding-left:0}
td.words,th.words{text-align:left;white-space:normal}td.words{min-width:16em}
tr:hover td{background:var(--shade)}
code{background:var(--shade);padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
tr.worse td{background:#ffe1db}tr.better td{background:#e0f4e4}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(32em,100%),1fr));gap:1em;margin:.6em 0}
.plots svg{width:100%;height:auto}
details{margin:.8em 0}summary{cursor:pointer;color:var(--quiet)}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}
figcaption{color:var(--quiet);font-size:.9em}
video,img{max-width:100%;border-radius:4px}video{min-width:16em;image-rendering:pixelated}
.filter{position:sticky;top:0;z-index:1;background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:.5em 1em;margin:0 0 1.2em}.filter label{margin-right:1em;white-space:nowrap}
@media print{.filter,nav{display:none}section{break-inside:avoid}}
"""


def html(pairs: Pairs, media: Sequence[Path] = ()) -> str:
    """The page of all documents and of the files of `media`, as HTML that loads nothing and runs no script.

    Raises:
        UserError: for a file of `media` that cannot be shown.
    """
    documents = [document for document, _ in pairs]
    parts = [choice(engines_of(documents)), gallery(media)]
    parts += ["\n".join(_part(number, *pair)) for number, pair in enumerate(pairs)]
    return "\n".join([
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>VideoMLA: results</title>",
        f"<style>{STYLE}</style>",
        f"<header><h1>VideoMLA: results</h1>{_summary(pairs)}{_contents(documents)}</header>",
        f"<main>{''.join(parts)}</main></html>\n",
    ])  # fmt: skip


def _summary(pairs: Pairs) -> str:
    """How many results of which machines, and how figures with an older counterpart changed."""
    machines = sorted({machine_name(document) for document, _ in pairs})
    said = f"{len(pairs)} results of {'; '.join(machines)}."
    if any(before is not None for _, before in pairs):
        counts = (f"{len(verdicts(pairs, name))} {name}" for name in ("better", "worse", "same"))
        said += f" Of the figures that have an older one: {', '.join(counts)}."
    return f"<p class=quiet>{escape(said)}</p>"


def _contents(documents: Sequence[dict[str, Any]]) -> str:
    links = (f"<a href='#part-{n}'>{escape(heading(one))}</a>" for n, one in enumerate(documents))
    return f"<nav>{''.join(links)}</nav>"


def _part(number: int, document: dict[str, Any], before: dict[str, Any] | None) -> Iterator[str]:
    made = section(document)
    yield f"<section id=part-{number}><h2>{escape(heading(document))}</h2>"
    yield f"<p class=quiet>{escape(facts(document))}<br><code>{escape(command(document))}</code></p>"
    plots = made.plots
    if before is not None:
        yield f"<p class=quiet>Old: {escape(facts(before))}</p>"
        older = {plot.title: plot for plot in section(before).plots}
        plots = [plot.beside(older.get(plot.title)) for plot in plots]
    yield f"<div class=plots>{''.join(plot.text() for plot in plots)}</div>"
    yield from (table.html() for table in made.tables)
    if before is not None and (found := changes(document, before)):
        yield from _changed(found, document["kind"])
    yield "</section>"


def _changed(found: list[FigureChange], kind: str) -> Iterator[str]:
    """The figures that changed by more than the noise as a plot, and all of them as a table to open."""
    changed = [change for change in found if change.verdict != "same"]
    if changed:
        yield f"<div class=plots>{change_plot(changed, kind).text()}</div>"
    said = f"{len(changed)} of {len(found)} figures changed by more than the noise"
    yield f"<details><summary>{said}</summary>{change_table(found, kind).html()}</details>"


def section(document: dict[str, Any]) -> Section:
    """The tables and plots of a kind; of an unknown one, nothing but its figures."""
    make = SECTIONS.get(document["kind"])
    return make(document) if make else Section(tables=[], plots=[])


def facts(document: dict[str, Any]) -> str:
    """Where and when a document was measured, in one line."""
    whole = "" if document.get("complete", True) else " Interrupted: the last parts are missing."
    commit = document["commit"][:10]
    versions = f"torch {document['versions']['torch']}"
    return f"{machine_name(document)}; {versions}; commit {commit}; {document['date']}.{whole}"


def command(document: dict[str, Any]) -> str:
    """The line that measures it again."""
    return str(document.get("command", f"vmla-bench {document['kind']}"))
