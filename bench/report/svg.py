"""Plots as SVG text: lines, points and bars, linear or logarithmic; nothing to install, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from bench.report.elements.engine_filter import named

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 160, 34, 44
"""Margins, the right one for the names of the series."""
COLOURS = ("#1f6fb4", "#d1622b", "#2c8a4b", "#8a4fb0", "#b03a48", "#5f6b7a", "#b88a00", "#008b95")
TICKS = 5
MARGIN = 0.08
"""Of an axis' range, left free beyond the values, so that no curve lies on the frame."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a plot: values to pixels."""

    label: str
    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    @classmethod
    def over(
        cls, values: Sequence[float], label: str, begin: float, end: float, *, log: bool, zero: bool,
        margin: float = 0.0,
    ) -> Axis:  # fmt: skip
        """An axis that shows all `values`, and zero if asked for, with a `margin` of its range about them."""
        known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(known), max(known)) if known else (1.0, 2.0)
        if zero and not log:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            half = max(0.5, 1e-6 * abs(low))  # of large numbers more, or nothing would be added
            low, high = (low / 2, high * 2) if log else (low - half, high + half)
        if margin and log:
            free = (high / low) ** margin
            low, high = low / free, high * free
        elif margin:
            free = margin * (high - low)
            low, high = low if zero and low == 0 else low - free, high if zero and high == 0 else high + free
        return cls(label=label, low=low, high=high, begin=begin, end=end, log=log)

    def place(self, value: float) -> float:
        """The pixel at which `value` is drawn."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, max(value, 1e-300)))
            if self.log
            else (self.low, self.high, value)
        )
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**decade for decade in decades] or [self.low, self.high]
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


@dataclass(kw_only=True)
class Plot:
    """A plot in the making."""

    title: str
    x: Axis
    y: Axis
    marks: list[str] = field(default_factory=list)
    names: int = 0

    def line(self, name: str, points: Points) -> None:
        """A series of points joined."""
        colour = self._named(name)
        path = " ".join(f"{self.x.place(x):.1f},{self.y.place(y):.1f}" for x, y in points)
        self.marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')

    def dots(self, name: str, points: Points) -> None:
        """A series of points on their own."""
        colour = self._named(name)
        self.marks += [
            f'<circle cx="{self.x.place(x):.1f}" cy="{self.y.place(y):.1f}" r="4" fill="{colour}"/>'
            for x, y in points
        ]

    def _named(self, name: str) -> str:
        colour = COLOURS[self.names % len(COLOURS)]
        y = TOP + 8 + 16 * self.names
        x = WIDTH - RIGHT + 12
        self.marks.append(f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        self.marks.append(f'<text x="{x + 15}" y="{y + 1}">{escape(name)}</text>')
        self.names += 1
        return colour

    def text(self) -> str:
        """The whole plot as SVG."""
        return _svg(HEIGHT, self.title, [*_grid(self.x, self.y), *self.marks])


def lines(
    title: str, series: Mapping[str, Points], x: str, y: str, *, log: bool = False, zero: bool = False,
    dots: Mapping[str, Points] | None = None,
) -> str:  # fmt: skip
    """A plot of series as lines, and of `dots` as points.

    Args:
        title: above it.
        series, dots: points (x, y) by name.
        x, y: the axes' labels.
        log: both axes are logarithmic.
        zero: the upward axis begins at zero.
    """
    shown = [point for points in [*series.values(), *(dots or {}).values()] for point in points]
    across = Axis.over([p[0] for p in shown], x, LEFT, WIDTH - RIGHT, log=log, zero=False)
    up = Axis.over([p[1] for p in shown], y, HEIGHT - BOTTOM, TOP, log=log, zero=zero, margin=MARGIN)
    plot = Plot(title=title, x=across, y=up)
    for name, points in series.items():
        plot.line(name, points)
    for name, points in (dots or {}).items():
        plot.dots(name, points)
    return plot.text()


def bars(
    title: str, values: Sequence[tuple[str, float, float | None]], unit: str, *, by_engine: bool = False
) -> str:
    """A bar for each (name, value, half width of its spread), the longest filling the plot.

    With `by_engine`, each belongs to the engine that its name begins with.
    """
    most = max((value + (spread or 0) for _, value, spread in values), default=1.0) or 1.0
    left = max(190, min(330, 8 + 6 * max((len(name) for name, _, _ in values), default=0)))
    step = 22
    room, height = WIDTH - left - 90, TOP + step * len(values) + 12
    marks = []
    for number, (name, value, spread) in enumerate(values):
        y, length = TOP + step * number, room * value / most
        colour = COLOURS[0]
        marks.append(f"<g{named(name) if by_engine else ''}>")
        marks.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        marks.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>')
        if spread:
            low, high = (left + room * (value + sign * spread) / most for sign in (-1, 1))
            marks.append(f'<path d="M{low:.1f} {y + 7.5}H{high:.1f}" stroke="#222" stroke-width="1.4"/>')
        end = left + room * (value + (spread or 0)) / most + 8
        marks.append(f'<text x="{end:.1f}" y="{y + 12}">{value:.4g} {escape(unit)}</text></g>')
    return _svg(height, title, marks)


def _grid(x: Axis, y: Axis) -> list[str]:
    """The frame of a plot with its ticks and labels."""
    marks = []
    for tick in x.ticks():
        at = x.place(tick)
        marks.append(f'<path d="M{at:.1f} {y.begin}V{y.end}" stroke="#ddd"/>')
        marks.append(f'<text x="{at:.1f}" y="{y.begin + 15}" text-anchor="middle">{tick:.4g}</text>')
    for tick in y.ticks():
        at = y.place(tick)
        marks.append(f'<path d="M{x.begin} {at:.1f}H{x.end}" stroke="#ddd"/>')
        marks.append(f'<text x="{x.begin - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    middle = (x.begin + x.end) / 2
    marks.append(f'<text x="{middle}" y="{y.begin + 34}" text-anchor="middle">{escape(x.label)}</text>')
    marks.append(f'<text x="6" y="{TOP - 8}">{escape(y.label)}</text>')
    return marks


def _svg(height: float, title: str, marks: Sequence[str]) -> str:
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="#222">'
    )
    head = f'<text x="{WIDTH / 2}" y="15" text-anchor="middle" font-weight="bold">{escape(title)}</text>'
    return "\n".join([opening, head, *marks, "</svg>"])
