"""Ranked lists as a picture: the query as the query network sees it, beside its best gallery images."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from d3still.data import ImageError, Sample, read_image
from d3still.data.image import MAX_PIXELS
from d3still.data.transforms import resize, resize_within
from d3still.errors import UserError
from d3still.evaluation.lists import Entry, RankedList
from d3still.files import write_atomically
from d3still.text import file_name, visible

logger = logging.getLogger(__name__)

Size = tuple[int, int]
# Okabe and Ito's green and Tol's vibrant red, which colour-blind readers tell apart; signs say the same again.
HIT, MISS, EXCLUDED = "#009e73", "#cc3311", "#8c8c8c"
TEXT, FAINT, PAPER = "#1a1a1a", "#5a5a5a", "#ffffff"
FONT = "fonts/ttf/DejaVuSans.ttf"  # comes with matplotlib
TITLE_POINTS, POINTS = 15, 12
LINE = 16  # pixels from one line of text to the next
GAP, BORDER = 10, 4
MIN_WIDTH = 480  # pixels, for the headings
COLUMNS = 10  # gallery images in one line
GREYED = 0.65  # how far an excluded image is faded to white


@dataclass(frozen=True)
class _Layout:
    cell: int
    columns: int
    max_pixels: int

    @property
    def step(self) -> tuple[int, int]:
        """Pixels from one gallery image to the next, across and down."""
        return self.cell + 2 * BORDER + GAP, self.cell + 2 * BORDER + 2 * LINE + GAP

    @property
    def left(self) -> int:
        """Where the gallery images begin."""
        return GAP + self.step[0] + 2 * GAP

    def height(self, entries: int) -> int:
        """Of one query's band, with its heading."""
        return GAP + 2 * LINE + max(1, math.ceil(entries / self.columns)) * self.step[1] + GAP


def ranked_list_picture(
    lists: Sequence[RankedList],
    query_size: Size,
    title: str = "",
    cell: int = 96,
    columns: int = COLUMNS,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Draw ranked lists one below the other.

    A hit has a green frame and ✓, a miss a red one and ✗; an image that the same-camera rule excludes is greyed,
    marked as excluded, and stands at its score without a rank.

    Args:
        lists: what to draw, each with its query.
        query_size: (height, width) of the query network's input; the query is shown at these very pixels.
        title: a line above all.
        cell: side of an image's square, in pixels.
        columns: gallery images in a line.
        max_pixels: the largest image that is decoded, see `d3still.data.image.read_image`.

    Returns:
        (H, W, 3) uint8.
    """
    longest = max((len(ranked.entries) for ranked in lists), default=1)
    layout = _Layout(cell, max(1, min(columns, longest)), max_pixels)
    heights = [layout.height(len(ranked.entries)) for ranked in lists]
    top = GAP + (2 * LINE if title else 0)
    width = max(MIN_WIDTH, layout.left + layout.columns * layout.step[0])
    sheet = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        _text(draw, (GAP, GAP), title, width - 2 * GAP, TITLE_POINTS)
    for ranked, height in zip(lists, heights, strict=True):
        _draw_list(sheet, draw, ranked, top, query_size, layout)
        top += height
    return np.asarray(sheet).copy()


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Save (H, W, 3) uint8 pixels in the format of the file's name.

    Raises:
        UserError: when the format is not known or the file cannot be written.
    """
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"cannot write the picture {path}: no such format; choose another --out, such as list.png")

    def save(file: IO[bytes]) -> None:
        try:
            Image.fromarray(picture).save(file, kind)
        except ValueError as error:  # such as more pixels than the format can have
            raise OSError(error) from error

    write_atomically(path, save)


def network_view(sample: Sample, size: Size, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """The very pixels that a network gets of an image at test; None where the file cannot be read, which is logged."""
    return _picture(sample, max_pixels, lambda pixels: resize(pixels, size))


def thumbnail(sample: Sample, side: int, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """The whole image, its proportions kept, within ``side`` × ``side`` pixels; None as of `network_view`."""
    return _picture(sample, max_pixels, lambda pixels: resize_within(pixels, side))


def _picture(sample: Sample, max_pixels: int, fit: Callable[[Tensor], Tensor]) -> Image.Image | None:
    try:
        pixels = fit(read_image(sample.path, sample.box, max_pixels))
    except ImageError as error:
        logger.warning("%s", error)
        return None
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _draw_list(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, ranked: RankedList, top: int, query_size: Size, layout: _Layout
) -> None:
    query = ranked.query
    ap = "no match in the gallery" if math.isnan(ranked.ap) else f"AP {100 * ranked.ap:.2f} %"
    heading = f"{file_name(query.path)}: identity {query.name}, camera {query.camera}, {ap}"
    _text(draw, (GAP, top + GAP), heading, sheet.width - 2 * GAP, TITLE_POINTS)
    top += GAP + 2 * LINE
    _paste(sheet, _enlarged(query, query_size, layout), (GAP + BORDER, top + BORDER), layout.cell)
    below = top + layout.cell + 2 * BORDER
    _text(draw, (GAP, below), f"query, {query_size[0]}×{query_size[1]} pixels", layout.step[0] + GAP)
    for place, entry in enumerate(ranked.entries):
        row, column = divmod(place, layout.columns)
        across, down = layout.step
        _draw_entry(sheet, draw, entry, (layout.left + column * across, top + row * down), layout)


def _draw_entry(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, entry: Entry, corner: tuple[int, int], layout: _Layout
) -> None:
    cell = layout.cell
    excluded = entry.rank is None
    colour = EXCLUDED if excluded else HIT if entry.hit else MISS
    left, top = corner
    side = cell + 2 * BORDER
    draw.rectangle((left, top, left + side - 1, top + side - 1), outline=colour, width=BORDER)
    picture = thumbnail(entry.sample, cell, layout.max_pixels)
    if excluded and picture is not None:
        picture = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), GREYED)
    _paste(sheet, picture, (left + BORDER, top + BORDER), cell)
    sign = "excluded" if excluded else f"{entry.rank} {'✓' if entry.hit else '✗'}"
    if excluded:
        draw.line((left, top + side, left + side, top), fill=colour, width=2)
    _text(draw, (left, top + side), f"{sign}  {entry.score:.3f}", side + GAP, fill=colour if excluded else TEXT)
    note = "same camera" if excluded else f"id {entry.sample.name}, cam {entry.sample.camera}"
    _text(draw, (left, top + side + LINE), note, side + GAP, fill=FAINT)


def _enlarged(sample: Sample, size: Size, layout: _Layout) -> Image.Image | None:
    """The network's view, enlarged without smoothing; the whole image where the view is larger than the cell."""
    times = layout.cell // max(size)
    if times == 0:
        return thumbnail(sample, layout.cell, layout.max_pixels)
    view = network_view(sample, size, layout.max_pixels)
    return None if view is None else view.resize((times * view.width, times * view.height), Image.Resampling.NEAREST)


def _paste(sheet: Image.Image, picture: Image.Image | None, corner: tuple[int, int], cell: int) -> None:
    """Put a picture into the middle of its square; a cross where it could not be read."""
    left, top = corner
    if picture is None:
        draw = ImageDraw.Draw(sheet)
        draw.line((left, top, left + cell, top + cell), fill=FAINT)
        draw.line((left, top + cell, left + cell, top), fill=FAINT)
        return
    sheet.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))


def _text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    room: int,
    points: int = POINTS,
    fill: str = TEXT,
) -> None:
    """One line of text, shortened in the middle to ``room`` pixels."""
    font = _font(points)
    text = visible(text)
    kept = len(text)
    shown = text
    while kept > 1 and draw.textlength(shown, font=font) > room:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    draw.text(corner, shown, font=font, fill=fill)


@functools.cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / FONT), points)
