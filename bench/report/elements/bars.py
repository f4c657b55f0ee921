"""Bars of one value each, and ratios of new to old about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from math import log

from bench.report.elements.axis import COLOURS, LETTER, TOP, WIDTH, drawing, short
from bench.report.elements.engine_filter import named

STEP = 22
"""Pixels from one bar to the next."""
SHORTEST_NAMES, LONGEST_NAMES = 120, 330
VERDICTS = {"worse": "#c0392b", "better": "#2c8a4b", "same": "#5f6b7a"}
LEAST_RATIO = 1.1
"""The least ratio, and inverse, that the axis of ratios extends to."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A bar for each (name, value, half width of its spread), the longest filling the plot."""

    title: str
    values: Sequence[tuple[str, float, float | None]]
    unit: str = ""
    by_engine: bool = False
    """Whether each belongs to the engine that its name begins with, which the page can be narrowed to."""
    old: Mapping[str, float] = field(default_factory=dict)
    """Values of an older run, drawn as a line across the bar of the same name."""

    def beside(self, old: object) -> Bars:
        """This plot with the values of an `old` plot over it, if that is of the same kind."""
        if not isinstance(old, Bars):
            return self
        return replace(self, old={name: value for name, value, _ in old.values})

    def text(self) -> str:
        """The plot as SVG text, one row a bar."""
        known = [value + (spread or 0) for _, value, spread in self.values]
        shared = {name: self.old[name] for name, *_ in self.values if name in self.old}
        most = max([*known, *shared.values()], default=1.0) or 1.0
        left = _room_for([name for name, *_ in self.values])
        room = (WIDTH - left - 90) / most
        marks = []
        for number, (name, value, spread) in enumerate(self.values):
            y = TOP + STEP * number
            marks.append(f"<g{named(name) if self.by_engine else ''}>{_label(name, left, y)}")
            marks.append(
                f'<rect x="{left}" y="{y}" width="{room * value:.1f}" height="15" fill="{COLOURS[0]}"/>'
            )
            if spread:
                low, high = (left + room * (value + sign * spread) for sign in (-1, 1))
                marks.append(f'<path d="M{low:.1f} {y + 7.5}H{high:.1f}" stroke="#222" stroke-width="1.4"/>')
            end = left + room * max(value + (spread or 0), shared.get(name, 0.0)) + 8
            if name in shared:
                at = left + room * shared[name]
                marks.append(f'<path d="M{at:.1f} {y - 2}v19" stroke="#222" stroke-width="2"/>')
            said = f"{short(value)} {self.unit}".strip()
            marks.append(f'<text x="{end:.1f}" y="{y + 12}">{escape(said)}</text></g>')
        height = TOP + STEP * len(self.values) + 12
        title = f"{self.title}; a line across a bar is the old value" if shared else self.title
        return drawing(height, title, marks)


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """New figures as multiples of old ones: (name, ratio, half width of its spread, verdict)."""

    title: str
    values: Sequence[tuple[str, float, float, str]]
    by_engine: bool = False

    def beside(self, old: object) -> Ratios:
        """Return this plot itself, which shows both runs already."""
        return self

    def text(self) -> str:
        """The plot as SVG: points on a logarithmic axis around 1, coloured by their verdict."""
        left, right = _room_for([name for name, *_ in self.values]), WIDTH - 90
        ends = [end for _, one, spread, _ in self.values for end in (one - spread, one, one + spread)]
        reach = 1.05 * max([log(LEAST_RATIO), *(abs(log(end)) for end in ends if end > 0)])
        middle, room = (left + right) / 2, (right - left) / 2 / reach
        height = TOP + STEP * len(self.values) + 12
        marks = [f'<path d="M{middle:.1f} {TOP - 6}V{height - 8}" stroke="#8a94a0" stroke-dasharray="3 3"/>']
        for number, (name, value, spread, verdict) in enumerate(self.values):
            y, colour = TOP + STEP * number, VERDICTS[verdict]
            low, at, high = (
                min(max(middle + room * log(max(r, 1e-9)), left), right)
                for r in (value - spread, value, value + spread)
            )
            marks.append(f"<g{named(name) if self.by_engine else ''}>{_label(name, left, y)}")
            marks.append(f'<path d="M{low:.1f} {y + 7.5}H{high:.1f}" stroke="{colour}" stroke-width="1.6"/>')
            marks.append(f'<circle cx="{at:.1f}" cy="{y + 7.5}" r="4.5" fill="{colour}"/>')
            said = f"{value - 1:+.1%}" if value < 10 else f"{short(value)} times"
            marks.append(f'<text x="{right + 8}" y="{y + 12}" fill="{colour}">{said}</text></g>')
        return drawing(height, self.title, marks)


def _room_for(names: Sequence[str]) -> float:
    """The margin beside bars, for their names."""
    longest = max((len(name) for name in names), default=0)
    return min(max(14 + LETTER * longest, SHORTEST_NAMES), LONGEST_NAMES)


def _label(name: str, left: float, y: float) -> str:
    return f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
