"""Charts of the report: matplotlib draws them as SVG, and the points that say something lie on top.

A drawing has the colours of the page's style sheet by their variables, so that it follows light and dark, and its
text stays text. Of the same values come the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3still.text import visible

WIDTH, HEIGHT, TALL = 360, 280, 372  # pixels: drawn at a phone's width, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44  # room around the axes
NAMES, VALUES, BAR_STEP = 104, 78, 20  # of bars: room before and behind them, and from one to the next
END = (WIDTH - RIGHT - NAMES) / (WIDTH - VALUES - NAMES)  # where notes behind bars end, of the axes' width
NAME_LENGTH = 15  # letters before a bar
FONT, TICKS = 12, 6
COLOURS = {  # base.css has them as variables of these names, for light and for dark
    "ink": "#1b1c20", "rule": "#d4d7dd", "faint": "#565b65", "before": "#0072b2", "after": "#d55e00", "half": "#e69f00",
}  # fmt: skip
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Point:
    """A mark that speaks: its outline as SVG path data, its classes in the style sheet, and what it says."""

    outline: str
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of ``width`` × ``height`` with its points, its heading and its legend: (classes, name) pairs."""

    caption: str
    label: str
    height: int
    drawing: Markup
    points: Sequence[Point]
    legend: Sequence[tuple[str, str]]
    width: int = WIDTH


@dataclass(frozen=True)
class Series:
    """A line: its name, its points, the class that gives it its colour, and whether it is dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A block: its name, value and class, what to say of it, and a note behind it."""

    name: str
    value: float
    kind: str
    text: str
    note: str


def line_chart(
    caption: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    high: float | None = None,
    unit: str = "",
    height: int = HEIGHT,
) -> Chart:
    """Lines over a common axis of whole numbers; series of one class share their entry in the legend.

    Args:
        high: an end that the vertical axis does not pass.
        unit: of the values, for the points' texts.
        height: in pixels.
    """
    figure, axes = _axes(height, x_label, y_label)
    for line in series:
        style = (0, (4, 3)) if line.dashed else "-"
        axes.plot(*zip(*line.points, strict=True), color=COLOURS[line.kind], linestyle=style, clip_on=False, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
    if high is not None:
        axes.set_ylim(top=high)
    at = _places(figure, axes)
    points = [
        Point(_circle(*at(x, y)), f"dot {line.kind}", f"{line.name}, {x_label} {x:g}: {y:.4g}{unit}")
        for line in series
        for x, y in line.points
    ]
    kinds = {f"{line.kind}{' dashed' * line.dashed}": line.name.partition(", seed")[0] for line in series}
    return _chart(figure, caption, f"{y_label} against {x_label}", points, list(kinds.items()))


def scatter(caption: str, dots: Sequence[tuple[float, float, str]], x_label: str, y_label: str) -> Chart:
    """Each query's value before and after, in percent, and what to say of it; above the diagonal it gained.

    Points come in order of their gain.
    """
    figure, axes = _axes(TALL, x_label, y_label)
    axes.plot((0, 100), (0, 100), color=COLOURS["faint"], linestyle=(0, (4, 4)), linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    at = _places(figure, axes)
    points = []
    for x, y, text in sorted(dots, key=lambda dot: dot[0] - dot[1]):
        way = int(y > x) - int(y < x)
        outline = _triangle(*at(x, y), way) if way else _circle(*at(x, y))
        points.append(Point(outline, ("same", "up", "down")[way], text))
    legend = [("block up", "gained (▲)"), ("block down", "lost (▼)"), ("block same", "unchanged (●)")]
    return _chart(figure, caption, f"{y_label} against {x_label}", points, legend)


def bar_chart(caption: str, bars: Sequence[Bar], x_label: str, legend: Iterable[tuple[str, str]]) -> Chart:
    """Horizontal bars from 0, each with its name before and its note behind it."""
    figure, axes = _axes(TOP + BAR_STEP * len(bars) + BOTTOM, x_label, "", NAMES, VALUES)
    places = range(len(bars))
    axes.barh(places, [bar.value for bar in bars], 0.7, color=[COLOURS[bar.kind] for bar in bars], zorder=3)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_yticks(places, [_shortened(bar.name) for bar in bars], parse_math=False)
    axes.grid(visible=False, axis="y")
    at = _places(figure, axes)
    points = []
    for place, bar in enumerate(bars):
        (left, top), (right, bottom) = at(min(bar.value, 0), place - 0.35), at(max(bar.value, 0), place + 0.35)
        outline = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}z"
        points.append(Point(outline, f"bar {bar.kind}", bar.text))
        axes.text(END, place, bar.note, transform=axes.get_yaxis_transform(), size=FONT, ha="right", va="center")
    return _chart(figure, caption, x_label, points, [(f"block {kind}", name) for kind, name in legend])


def _axes(height: int, x_label: str, y_label: str, left: int = LEFT, right: int = RIGHT) -> tuple[Figure, Axes]:
    """Axes with a grid and without a frame, at a fixed place in a figure of a point a pixel."""
    with matplotlib.rc_context({"font.size": FONT}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        room = (left / WIDTH, BOTTOM / height, (WIDTH - left - right) / WIDTH, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes(room, xlabel=x_label, ylabel=y_label)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False, left=False)
    axes.locator_params(nbins=TICKS)
    axes.grid(color=COLOURS["rule"])
    return figure, axes


def _places(figure: Figure, axes: Axes) -> Callable[[float, float], tuple[float, float]]:
    """From a value to its place in the drawing, whose origin is at the top; the axes' limits stay from now on."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    height = figure.get_figheight() * 72

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y))
        return across, height - up

    return place


def _chart(
    figure: Figure, caption: str, label: str, points: Sequence[Point], legend: Sequence[tuple[str, str]]
) -> Chart:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    # Its style would rule the whole page, its ids change with every run, and nothing needs to be clipped.
    drawn = re.sub(r'<defs>.*?</defs>| id="[^"]*"| clip-path="[^"]*"', "", drawn, flags=re.DOTALL)
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return Chart(caption, label, round(figure.get_figheight() * 72), Markup(drawn), points, legend)


def _circle(x: float, y: float) -> str:
    return f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z"


def _triangle(x: float, y: float, way: int) -> str:
    return f"M{x:.1f} {y - 4 * way:.1f}l4 {8 * way}h-8z"


def _shortened(name: str) -> str:
    name = visible(name)
    return name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}"
