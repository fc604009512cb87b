"""Scales, ticks and the frame that all charts of the report share, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d3still.reporting.html.markup import Safe, join, tag

TICKS = 5  # about how many an axis has
WIDTH, HEIGHT = 360, 280  # drawn at a phone's width, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42


@dataclass(frozen=True)
class Scale:
    """A linear map from values low … high to pixels start … end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        step = nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(extent: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that cuts an extent into about `TICKS` parts."""
    rough = extent / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def nice_range(values: Iterable[float], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """A range of round numbers around values; ``low`` and ``high`` are ends that it must not pass."""
    values = list(values)
    bottom, top = min(values), max(values)
    if bottom == top:
        bottom, top = bottom - (abs(bottom) or 1) / 10, top + (abs(top) or 1) / 10
    step = nice_step(top - bottom)
    bottom, top = step * math.floor(bottom / step + 1e-9), step * math.ceil(top / step - 1e-9)
    bottom = bottom if low is None else max(low, bottom)
    top = top if high is None else min(high, top)
    return (bottom, top) if top > bottom else (bottom - step, top + step)


@dataclass(frozen=True)
class Frame:
    """Both axes of a chart, with their names."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    height: int = HEIGHT

    @classmethod
    def around(
        cls,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_label: str,
        y_label: str,
        height: int = HEIGHT,
    ) -> Frame:
        """A frame of the usual size for these ranges."""
        return cls(
            Scale(*x_range, LEFT, WIDTH - RIGHT), Scale(*y_range, height - BOTTOM, TOP), x_label, y_label, height
        )

    def draw(self, marks: Iterable[Safe], label: str) -> Safe:
        """The whole chart: grid, axes with ticks and names, and the marks on top.

        Args:
            marks: what is shown.
            label: what the chart is, for readers who do not see it.
        """
        bottom, left = self.height - BOTTOM, LEFT
        lines, texts = [], []
        for value in self.y.ticks():
            lines.append(tag("line", x1=left, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value)))
            texts.append(tag("text", number(value), x=left - 6, y=self.y(value) + 4, text_anchor="end"))
        for value in self.x.ticks():
            lines.append(tag("line", x1=self.x(value), x2=self.x(value), y1=TOP, y2=bottom))
            texts.append(tag("text", number(value), x=self.x(value), y=bottom + 16, text_anchor="middle"))
        middle = (TOP + bottom) / 2
        names = (
            tag("text", self.x_label, x=(left + WIDTH - RIGHT) / 2, y=self.height - 6, text_anchor="middle"),
            tag("text", self.y_label, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:.0f})"),
        )
        return chart(self.height, label, tag("g", *lines, class_="grid"), tag("g", *texts, *names), *marks)


def chart(height: float, label: str, *content: object) -> Safe:
    """The ``svg`` element of a chart."""
    return tag("svg", *content, viewBox=f"0 0 {WIDTH} {height:.0f}", role="group", aria_label=label, class_="chart")


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Safe:
    """A line through pixel positions."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def legend(entries: Iterable[tuple[str, str]]) -> Safe:
    """(class of a mark, its name) pairs as a list; the class paints the sign before the name."""
    return tag("ul", *(tag("li", tag("i", class_=name), text) for name, text in entries), class_="legend")


def figure(caption: str, *content: object) -> Safe:
    """A chart with its heading."""
    return tag("figure", tag("figcaption", caption), join(*content))


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:.6g}".replace("-", "−")
