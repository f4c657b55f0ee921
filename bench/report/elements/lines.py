"""Plots of series as lines and points, linear or logarithmic; those of an older run lie over them, dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from bench.report.elements.axis import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    LETTER,
    MARGIN,
    TOP,
    WIDTH,
    Axis,
    drawing,
    grid,
)

Points = Sequence[tuple[float, float]]
NARROWEST, WIDEST = 90, 260
"""Bounds of the margin for the names of the series."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Series of points (x, y) by name, and the labels of the axes."""

    title: str
    x: str
    y: str
    series: Mapping[str, Points]
    dots: Mapping[str, Points] = field(default_factory=dict)
    """Series that are not joined."""
    old: Mapping[str, Points] = field(default_factory=dict)
    """Series of an older run, drawn dashed in the colour of the series of the same name."""
    log: bool = False
    """Whether both axes are logarithmic."""
    zero: bool = False
    """Whether the upward axis begins at zero."""

    def beside(self, old: object) -> Lines:
        """This plot with the series of an `old` plot over it, if that is of the same kind."""
        return replace(self, old=old.series) if isinstance(old, Lines) else self

    @property
    def right(self) -> float:
        """The margin beside the plot, for the names."""
        names = [*self.series, *self.dots, *(f"{name}, old" for name in self.old)]
        longest = max((len(name) for name in names), default=0)
        return min(max(34 + LETTER * longest, NARROWEST), WIDEST)

    def text(self) -> str:
        """The plot as SVG text, with axes and the names of the series."""
        x, y = self._axes()
        names = list({**self.series, **self.dots, **self.old})
        colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
        marks = grid(x, y)
        for name, points in self.old.items():
            marks.append(
                _line(points, x, y, f'stroke="{colours[name]}" stroke-dasharray="4 3" opacity="0.7"')
            )
        for name, points in self.series.items():
            marks.append(_line(points, x, y, f'stroke="{colours[name]}"'))
        for name, points in self.dots.items():
            marks += [
                f'<circle cx="{x.place(a):.1f}" cy="{y.place(b):.1f}" r="4" fill="{colours[name]}"/>'
                for a, b in points
            ]
        return drawing(HEIGHT, self.title, [*marks, *self._legend(colours)])

    def _axes(self) -> tuple[Axis, Axis]:
        every = (*self.series.values(), *self.dots.values(), *self.old.values())
        shown = [point for points in every for point in points]
        across = Axis.over([p[0] for p in shown], self.x, LEFT, WIDTH - self.right, log=self.log, zero=False)
        up = Axis.over(
            [p[1] for p in shown], self.y, HEIGHT - BOTTOM, TOP, log=self.log, zero=self.zero, margin=MARGIN
        )
        return across, up

    def _legend(self, colours: Mapping[str, str]) -> list[str]:
        marks = []
        for number, (name, colour) in enumerate(colours.items()):
            x, y = WIDTH - self.right + 12, TOP + 8 + 16 * number
            marks.append(f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
            marks.append(f'<text x="{x + 15}" y="{y + 1}">{escape(name)}</text>')
        if self.old:
            y = TOP + 8 + 16 * len(colours)
            x = WIDTH - self.right + 12
            marks.append(f'<path d="M{x} {y - 3}h10" stroke="#222" stroke-dasharray="4 3"/>')
            marks.append(f'<text x="{x + 15}" y="{y + 1}">old, dashed</text>')
        return marks


def _line(points: Points, x: Axis, y: Axis, stroke: str) -> str:
    path = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in points)
    return f'<polyline points="{path}" fill="none" stroke-width="1.6" {stroke}/>'
