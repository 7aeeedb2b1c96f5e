"""Small charts as SVG text, coloured by the page's style sheet so that they follow light and dark mode.

The drawings are narrow (:data:`WIDTH` units): on a phone they are shown at nearly their size, so that text stays
readable; on a large screen they grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 42


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: In the legend.
        style: CSS class: ``measured``, ``static``, ``ideal``, ``predicted``, ``data``.
        points: (x, y), drawn in order of x.
        spread: (x, low, high), drawn as whiskers.
        markers: Draw the points.
        connect: Draw the line between them.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float, float]] = ()
    markers: bool = True
    connect: bool = True


@dataclass(frozen=True)
class Bars:
    """A series of horizontal bars (or of marks) with one value per category; None leaves a gap."""

    label: str
    style: str
    values: Sequence[float | None]
    mark: bool = False


@dataclass
class _Drawing:
    title: str
    description: str
    identifier: str
    height: float
    parts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.parts.append(text)

    def text(self, x: float, y: float, content: str, anchor: str = "start", style: str = "label") -> None:
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(content)}</text>')

    def tick(self, x: float, y: float, content: str) -> None:
        """A label centred under a mark, unless it would stick out of the drawing."""
        inside = x + 3.6 * len(content) <= WIDTH
        self.text(x if inside else WIDTH - 1, y, content, "middle" if inside else "end")

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def legend(self, entries: Sequence[tuple[str, str, bool]], y: float) -> float:
        """Draw the legend from ``y``, wrapping where a row is full; returns the last baseline."""
        x = float(_LEFT)
        for label, style, mark in entries:
            width = 24 + 6.6 * len(label)
            if x + width > WIDTH and x > _LEFT:
                x, y = float(_LEFT), y + 16
            if mark:
                self.add(_diamond(x + 7, y - 4, style))
            else:
                self.line(x, y - 4, x + 14, y - 4, f"stroke {style}")
            self.text(x + 18, y, label)
            x += width + 8
        return y

    def render(self) -> str:
        title, description = f"{self.identifier}-t", f"{self.identifier}-d"
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-labelledby="{title} {description}" '
            f'class="chart" preserveAspectRatio="xMidYMin meet">'
            f'<title id="{title}">{escape(self.title)}</title>'
            f'<desc id="{description}">{escape(self.description)}</desc>' + "".join(self.parts) + "</svg>"
        )


def _diamond(x: float, y: float, style: str) -> str:
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" class="fill {style}"/>'


def ticks(high: float, low: float = 0.0, count: int = 5) -> list[float]:
    """Round numbers from ``low`` or just below it to ``high`` or just above it."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low, low + 1.0]
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    identifier: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    x_low: float = 0.0,
    x_high: float = 1.0,
    y_low: float = 0.0,
) -> str:
    """Draw lines over x.

    Args:
        lines: At least one with a point.
        identifier: Unique in the page.
        title: Read out by screen readers, like ``description``.
        description: What the chart shows, in words.
        x_label: Under the axis.
        y_label: Above the axis.
        x_low: Where the x axis starts.
        x_high: Where it ends.
        y_low: Where the y axis starts.

    Returns:
        An ``<svg>`` element.
    """
    top, plot = _TOP + 12, 230
    high = max([y for line in lines for _, y in line.points] + [h for line in lines for *_, h in line.spread])
    marks, steps = ticks(high, y_low), ticks(x_high, x_low)
    bottom = top + plot
    drawing = _Drawing(title, description, identifier, 0)

    def place_x(value: float) -> float:
        return _LEFT + (value - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - _LEFT - _RIGHT)

    def place_y(value: float) -> float:
        return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * plot

    for mark in marks:
        drawing.line(_LEFT, place_y(mark), WIDTH - _RIGHT, place_y(mark), "grid")
        drawing.text(_LEFT - 6, place_y(mark) + 4, f"{mark:g}", "end")
    for value in steps:
        drawing.line(place_x(value), bottom, place_x(value), bottom + 4, "axis")
        drawing.tick(place_x(value), bottom + 17, f"{value:g}")
    drawing.line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis")
    drawing.text(WIDTH - _RIGHT, bottom + 33, x_label, "end")
    drawing.text(4, _TOP, y_label)
    for line in lines:
        points = sorted(line.points)
        if line.connect and len(points) > 1:
            path = "L".join(f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in points)
            drawing.add(f'<path d="M{path}" class="stroke {line.style}"/>')
        for x, low, upper in line.spread:
            drawing.line(place_x(x), place_y(low), place_x(x), place_y(upper), f"stroke {line.style}")
        for x, y in points if line.markers else ():
            shape = (
                _diamond(place_x(x), place_y(y), line.style)
                if not line.connect
                else f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.5" class="fill {line.style}"/>'
            )
            drawing.add(shape)
    end = drawing.legend([(line.label, line.style, not line.connect) for line in lines], bottom + _BOTTOM + 12)
    drawing.height = end + 8
    return drawing.render()


def bar_chart(
    categories: Sequence[str],
    series: Sequence[Bars],
    *,
    identifier: str,
    title: str,
    description: str,
    x_label: str,
    form: Callable[[float], str] = "{:.3g}".format,
    reference: float | None = None,
) -> str:
    """Draw horizontal bars, one row per category and series; marks lie over the bars of their category.

    Args:
        categories: Names of the rows.
        series: Each with one value per category.
        identifier: Unique in the page.
        title: Read out by screen readers, like ``description``.
        description: What the chart shows, in words.
        x_label: Under the axis.
        form: Writes a value behind its bar.
        reference: A vertical line at this value.

    Returns:
        An ``<svg>`` element.
    """
    bars = [entry for entry in series if not entry.mark]
    left = 22 + 6.8 * max((len(name) for name in categories), default=4)
    thickness, gap = 11, 7
    values = [value for entry in series for value in entry.values if value is not None]
    axis = ticks(max([*values, reference or 0.0]))
    drawing = _Drawing(title, description, identifier, 0)
    right = 44
    row = thickness * len(bars) + gap
    bottom = _TOP + row * len(categories)

    def place(value: float) -> float:
        return left + value / axis[-1] * (WIDTH - left - right)

    for mark in axis:
        drawing.line(place(mark), _TOP - 4, place(mark), bottom, "grid")
        drawing.tick(place(mark), bottom + 14, f"{mark:g}")
    if reference is not None:
        drawing.line(place(reference), _TOP - 4, place(reference), bottom, "stroke ideal")
    for index, name in enumerate(categories):
        y = _TOP + index * row
        drawing.text(left - 6, y + thickness * len(bars) / 2 + 4, name, "end")
        for number, entry in enumerate(bars):
            value = entry.values[index]
            if value is None:
                continue
            at = y + number * thickness
            drawing.add(
                f'<rect x="{left:.1f}" y="{at:.1f}" width="{max(place(value) - left, 0.5):.1f}" '
                f'height="{thickness - 1}" class="fill {entry.style}"/>'
            )
            drawing.text(place(value) + 4, at + thickness - 1.5, form(value), style="value")
        for entry in series:
            value = entry.values[index]
            if entry.mark and value is not None:
                drawing.add(_diamond(place(value), y + thickness * len(bars) / 2 - 0.5, entry.style))
    drawing.text(WIDTH - 4, bottom + 30, x_label, "end")
    entries = [(entry.label, entry.style, entry.mark) for entry in series]
    drawing.height = drawing.legend(entries, bottom + 50) + 8
    return drawing.render()
