"""Tables of a report, in Markdown and in HTML, and the section that they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

from bench.report.elements.bars import Bars, Ratios
from bench.report.elements.engine_filter import named
from bench.report.elements.lines import Lines

Plot = Lines | Bars | Ratios
LONG = 30
"""Characters from which on a cell is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings, as Markdown and as HTML; a cell `worse` or `better` colours its row."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    by_engine: bool = False
    """Whether each row begins with the name of an engine, which the page can be narrowed to."""

    def markdown(self) -> list[str]:
        """The table's lines in Markdown."""
        rule = "|---" * len(self.headings) + "|"
        return [_row(self.headings), rule, *(_row(row) for row in self.rows)]

    def html(self) -> str:
        """The table as an HTML element under its title."""
        wordy = [
            any(len(cell) > LONG for row in self.rows for cell in row[n : n + 1])
            for n in range(len(self.headings))
        ]
        head = "".join(map(partial(_cell, "th"), self.headings, wordy))
        body = "".join(
            f'<tr class="{row[-1] if row[-1] in ("worse", "better") else ""}"{self._engine(row)}>'
            + "".join(map(partial(_cell, "td"), row, wordy))
            + "</tr>"
            for row in self.rows
        )
        table = f"<table><tr>{head}</tr>{body}</table>"
        return f"<h3>{escape(self.title)}</h3><div class=scroll>{table}</div>"

    def _engine(self, row: list[str]) -> str:
        return named(row[0]) if self.by_engine else ""


def _cell(kind: str, text: str, wordy: bool) -> str:
    """An element `kind`; in a column of sentences, which may take several lines, it begins at the left."""
    return f"<{kind}{' class=words' if wordy else ''}>{escape(text)}</{kind}>"


@dataclass(frozen=True, kw_only=True)
class Section:
    """The section of one document: a title, a table, its plots."""

    tables: list[Table]
    plots: Sequence[Plot]


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no end of a table's cell."""
    text = escape(" ".join(text.split()), quote=False)
    for sign in ("\\", "`", "[", "|"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"
