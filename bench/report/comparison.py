"""Results beside older ones of the same kind and subject: figures that changed by more than the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness.document import machine_name
from bench.report.elements.bars import Ratios
from bench.report.elements.table import Table
from bench.report.figures import Figure, figures
from plugins.errors import UserError

TOLERANCE = 0.05
"""Relative change of a figure without a known spread below which it counts as the same."""
BY_ENGINE = ("engines", "gpu")
"""Kinds whose figures begin with the name of an engine."""

Pairs = Sequence[tuple[dict[str, Any], dict[str, Any] | None]]
"""Documents, each with the older one that it is compared with, or None."""


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
    def spread(self) -> float:
        """The spread of the ratio; 0 if neither figure's is known."""
        return abs(self.ratio) * _of_both(self.old, self.new)

    @property
    def verdict(self) -> str:
        """`worse`, `better`, or `same` within the noise of both."""
        noise = 3 * _of_both(self.old, self.new) or TOLERANCE
        change = self.ratio - 1 if self.new.more_is_better else 1 - self.ratio
        if abs(change) <= noise:
            return "same"
        return "better" if change > 0 else "worse"


def _of_both(old: Figure, new: Figure) -> float:
    """The relative spread of a ratio of two figures."""
    return float((old.spread**2 + new.spread**2) ** 0.5)


def key(document: dict[str, Any]) -> tuple[str, str]:
    """Identifies comparable documents: the kind of benchmark, and its subject."""
    return document["kind"], str(document.get("subject") or document.get("checkpoint") or "")


def changes(new: dict[str, Any], old: dict[str, Any]) -> list[FigureChange]:
    """How the figures that both documents have changed."""
    now, then = figures(new), figures(old)
    return [
        FigureChange(name=name, old=then[name], new=figure)
        for name, figure in now.items()
        if name in then and then[name].value
    ]


def pair_up(new: list[dict[str, Any]], old: list[dict[str, Any]], *, across: bool) -> Pairs:
    """Each new document with the old one of its kind and subject.

    Raises:
        UserError: if they come from different machines and `across` is not set.
    """
    earlier = {key(document): document for document in old}
    pairs = [(document, earlier.get(key(document))) for document in new]
    for document, before in pairs:
        if before is not None and machine_name(document) != machine_name(before) and not across:
            names = f"{machine_name(before)} and {machine_name(document)}"
            mend = "add --across-machines to compare them all the same"
            raise UserError(f"{document['kind']}: old and new are from {names}; {mend}")
    return pairs


def change_table(found: list[FigureChange], kind: str) -> Table:
    """A table of old and new figures side by side."""
    rows = [
        [c.name, f"{c.old.value:.4g}", f"{c.new.value:.4g}", f"{c.ratio - 1:+.1%}", c.verdict] for c in found
    ]
    return Table(
        title="against the old results",
        headings=["figure", "old", "new", "change", ""],
        rows=rows,
        by_engine=kind in BY_ENGINE,
    )


def change_plot(found: list[FigureChange], kind: str) -> Ratios:
    """New figures as multiples of the old ones, with the spread of both."""
    values = [(c.name, c.ratio, c.spread, c.verdict) for c in found]
    return Ratios(
        title="new over old, where it changed by more than the noise",
        values=values,
        by_engine=kind in BY_ENGINE,
    )


def heading(document: dict[str, Any]) -> str:
    """The heading of a document: its kind and its subject."""
    return ": ".join(part for part in key(document) if part)


def verdicts(pairs: Pairs, verdict: str) -> list[str]:
    """The names of the figures with this verdict."""
    return [
        f"{heading(document)}: {change.name}"
        for document, before in pairs
        if before is not None
        for change in changes(document, before)
        if change.verdict == verdict
    ]
