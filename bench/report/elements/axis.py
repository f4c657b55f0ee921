"""The frame of a plot as SVG text: axes with round ticks and a margin, so that no curve lies on the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, TOP, BOTTOM = 64, 40, 44
"""Margins; the right one depends on the names of the series."""
COLOURS = ("#1f6fb4", "#d1622b", "#2c8a4b", "#8a4fb0", "#b03a48", "#5f6b7a", "#b88a00", "#008b95")
TICKS = 5
MARGIN = 0.08
"""Share of an axis' range that is left free beyond the values."""
LETTER = 6.2
"""Approximate width of a letter in pixels."""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))
"""The value from which each prefix is used; thousands up to ten are written out."""


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
            half = max(0.5, 1e-6 * abs(low))  # relative for large numbers, to which 0.5 would add nothing
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


def short(value: float) -> str:
    """A number in four digits, with a prefix if it is large."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if prefix == 'k' else size):.4g}{prefix}"
    return f"{value:.4g}"


def grid(x: Axis, y: Axis) -> list[str]:
    """The frame of a plot with its ticks and labels."""
    marks = []
    for tick in x.ticks():
        at = x.place(tick)
        marks.append(f'<path d="M{at:.1f} {y.begin}V{y.end}" stroke="#e3e6ea"/>')
        marks.append(f'<text x="{at:.1f}" y="{y.begin + 15}" text-anchor="middle">{short(tick)}</text>')
    for tick in y.ticks():
        at = y.place(tick)
        marks.append(f'<path d="M{x.begin} {at:.1f}H{x.end}" stroke="#e3e6ea"/>')
        marks.append(f'<text x="{x.begin - 6}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    marks.append(f'<path d="M{x.begin} {y.end}V{y.begin}H{x.end}" stroke="#8a94a0" fill="none"/>')
    middle = (x.begin + x.end) / 2
    marks.append(f'<text x="{middle}" y="{y.begin + 34}" text-anchor="middle">{escape(x.label)}</text>')
    marks.append(f'<text x="6" y="{TOP - 10}">{escape(y.label)}</text>')
    return marks


def drawing(height: float, title: str, marks: Sequence[str]) -> str:
    """A whole SVG of `WIDTH` and `height` pixels."""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="#222" '
        f'role="img" aria-label="{escape(title)}">'
    )
    head = f'<text x="6" y="16" font-size="13" font-weight="bold">{escape(title)}</text>'
    return "\n".join([opening, head, *marks, "</svg>"])
