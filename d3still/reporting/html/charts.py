"""The report's charts: lines, a scatter of queries, bars of blocks.

Every point that says something is a ``.pt`` with its text as ``aria-label``: report.js shows that text when the
point is hovered, tapped or reached by keyboard, and screen readers read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d3still.reporting.html.axes import (
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Scale,
    chart,
    figure,
    legend,
    nice_range,
    number,
    polyline,
)
from d3still.reporting.html.markup import Safe, tag

POINT_RADIUS = 3.0
BAR, BAR_STEP, BAR_LEFT, BAR_RIGHT = 14, 20, 104, 78  # pixels: thickness, step, room for names and for values
TALL = 372
TRIANGLE = 4.0  # half the width of a scatter's mark


@dataclass(frozen=True)
class Series:
    """A line: its name, its points, and the class that gives it colour and dashes."""

    name: str
    points: Sequence[tuple[float, float]]
    class_: str


@dataclass(frozen=True)
class Dot:
    """A query in the scatter: both values in percent, and what to say of it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A block: its name, value, the class of its tier, and what to say of it."""

    name: str
    value: float
    class_: str
    text: str
    note: str


def line_chart(
    caption: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    height: int = HEIGHT,
) -> Safe:
    """Lines over a common axis, with a legend; series of one class share their entry in it.

    Args:
        low, high: ends that the vertical axis must not pass.
        unit: of the values, for the points' texts.
        height: of the drawing, in pixels.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    frame = Frame.around((min(xs), max(max(xs), min(xs) + 1)), nice_range(ys, low, high), x_label, y_label, height)
    marks = []
    for line in series:
        pixels = [(frame.x(x), frame.y(y)) for x, y in line.points]
        marks.append(polyline(pixels, f"line {line.class_}"))
        for (x, y), (px, py) in zip(line.points, pixels, strict=True):
            text = f"{line.name}, {x_label} {number(x)}: {y:.4g}{unit}"
            marks.append(_point("circle", f"dot {line.class_}", text, cx=px, cy=py, r=POINT_RADIUS))
    names = {line.class_: line.name.partition(", seed")[0] for line in series}
    return figure(caption, frame.draw(marks, f"{caption}: {y_label} against {x_label}"), legend(names.items()))


def scatter(caption: str, dots: Sequence[Dot], x_label: str, y_label: str) -> Safe:
    """Each query's value before and after; above the diagonal it gained. Points come in order of their gain."""
    frame = Frame.around((0, 100), (0, 100), x_label, y_label, TALL)
    marks = [polyline([(frame.x(0), frame.y(0)), (frame.x(100), frame.y(100))], "diagonal")]
    for dot in sorted(dots, key=lambda dot: dot.x - dot.y):
        x, y = frame.x(dot.x), frame.y(dot.y)
        if dot.y == dot.x:
            marks.append(_point("circle", "same", dot.text, cx=x, cy=y, r=POINT_RADIUS))
        else:
            up = 1 if dot.y > dot.x else -1
            path = f"M{x:.1f} {y - up * TRIANGLE:.1f}l{TRIANGLE:.0f} {up * 2 * TRIANGLE:.0f}h{-2 * TRIANGLE:.0f}z"
            marks.append(_point("path", "up" if up > 0 else "down", dot.text, d=path))
    names = [("up", "gained (▲)"), ("down", "lost (▼)"), ("same", "unchanged (●)")]
    return figure(caption, frame.draw(marks, f"{caption}: {y_label} against {x_label}"), legend(names))


def bar_chart(caption: str, bars: Sequence[Bar], x_label: str, tiers: Sequence[tuple[str, str]]) -> Safe:
    """Horizontal bars from 0, each with its name before and its note behind it."""
    low, high = nice_range([0.0, *(bar.value for bar in bars)])
    scale = Scale(min(low, 0.0), max(high, 0.0), BAR_LEFT, WIDTH - BAR_RIGHT)
    bottom = TOP + BAR_STEP * len(bars)
    lines = [tag("line", x1=scale(value), x2=scale(value), y1=TOP, y2=bottom) for value in scale.ticks()]
    marks = [tag("text", number(value), x=scale(value), y=bottom + 14, text_anchor="middle") for value in scale.ticks()]
    marks.append(tag("text", x_label, x=(BAR_LEFT + WIDTH - BAR_RIGHT) / 2, y=bottom + 32, text_anchor="middle"))
    for row, bar in enumerate(bars):
        y, ends = TOP + row * BAR_STEP, sorted((scale(0), scale(bar.value)))
        marks.append(tag("text", _shortened(bar.name), x=BAR_LEFT - 6, y=y + BAR - 3, text_anchor="end"))
        shape = {"x": ends[0], "y": float(y), "width": max(1.0, ends[1] - ends[0]), "height": BAR}
        marks.append(_point("rect", f"bar {bar.class_}", bar.text, **shape))
        marks.append(tag("text", bar.note, x=WIDTH - RIGHT, y=y + BAR - 3, text_anchor="end"))
    drawing = chart(bottom + 40, f"{caption}: {x_label}", tag("g", *lines, class_="grid"), *marks)
    return figure(caption, drawing, legend(tiers))


def _point(shape: str, class_: str, text: str, **attributes: object) -> Safe:
    return tag(shape, class_=f"pt {class_}", tabindex=-1, role="img", aria_label=text, **attributes)


def _shortened(name: str) -> str:
    room = 15  # letters before the bars
    return name if len(name) <= room else f"…{name[1 - room :]}"
