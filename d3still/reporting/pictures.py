"""Ranked lists as a picture: the query as the query network sees it, beside its best gallery images."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
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
    sheet = _Sheet(cell, max(1, min(columns, longest)), max_pixels, [len(ranked.entries) for ranked in lists], title)
    for ranked in lists:
        sheet.draw_list(ranked, query_size)
    return np.asarray(sheet.image).copy()


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


class _Sheet:
    """Paper as large as its lists, of so many entries each, on which they are drawn from the top down."""

    def __init__(self, cell: int, columns: int, max_pixels: int, entries: Sequence[int], title: str) -> None:
        self._cell, self._columns, self._max_pixels = cell, columns, max_pixels
        self._across, self._down = cell + 2 * BORDER + GAP, cell + 2 * BORDER + 2 * LINE + GAP  # to the next image
        self._left = GAP + self._across + 2 * GAP  # where the gallery images begin
        self._top = GAP + (2 * LINE if title else 0)  # of the next list
        lines = sum(max(1, math.ceil(count / columns)) for count in entries)
        height = self._top + len(entries) * (2 * GAP + 2 * LINE) + lines * self._down
        self.image = Image.new("RGB", (max(MIN_WIDTH, self._left + columns * self._across), height), PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._write((GAP, GAP), title, self.image.width - 2 * GAP, TITLE_POINTS)

    def draw_list(self, ranked: RankedList, query_size: Size) -> None:
        """A heading, the query, and beside it the gallery images in lines."""
        query = ranked.query
        ap = "no match in the gallery" if math.isnan(ranked.ap) else f"AP {100 * ranked.ap:.2f} %"
        heading = f"{file_name(query.path)}: identity {query.name}, camera {query.camera}, {ap}"
        self._write((GAP, self._top + GAP), heading, self.image.width - 2 * GAP, TITLE_POINTS)
        top = self._top + GAP + 2 * LINE
        self._paste(self._enlarged(query, query_size), (GAP + BORDER, top + BORDER))
        below = top + self._cell + 2 * BORDER
        self._write((GAP, below), f"query, {query_size[0]}×{query_size[1]} pixels", self._across + GAP)
        for place, entry in enumerate(ranked.entries):
            row, column = divmod(place, self._columns)
            self._draw_entry(entry, self._left + column * self._across, top + row * self._down)
        self._top = top + max(1, math.ceil(len(ranked.entries) / self._columns)) * self._down + GAP

    def _draw_entry(self, entry: Entry, left: int, top: int) -> None:
        excluded = entry.rank is None
        colour = EXCLUDED if excluded else HIT if entry.hit else MISS
        side = self._cell + 2 * BORDER
        self._draw.rectangle((left, top, left + side - 1, top + side - 1), outline=colour, width=BORDER)
        picture = thumbnail(entry.sample, self._cell, self._max_pixels)
        if excluded and picture is not None:
            picture = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), GREYED)
        self._paste(picture, (left + BORDER, top + BORDER))
        sign = "excluded" if excluded else f"{entry.rank} {'✓' if entry.hit else '✗'}"
        if excluded:
            self._draw.line((left, top + side, left + side, top), fill=colour, width=2)
        text = f"{sign}  {entry.score:.3f}"
        self._write((left, top + side), text, side + GAP, fill=colour if excluded else TEXT)
        note = "same camera" if excluded else f"id {entry.sample.name}, cam {entry.sample.camera}"
        self._write((left, top + side + LINE), note, side + GAP, fill=FAINT)

    def _enlarged(self, sample: Sample, size: Size) -> Image.Image | None:
        """The network's view, enlarged without smoothing; the whole image where the view is larger than the cell."""
        times = self._cell // max(size)
        if times == 0:
            return thumbnail(sample, self._cell, self._max_pixels)
        view = network_view(sample, size, self._max_pixels)
        return view and view.resize((times * view.width, times * view.height), Image.Resampling.NEAREST)

    def _paste(self, picture: Image.Image | None, corner: tuple[int, int]) -> None:
        """Put a picture into the middle of its square; a cross where it could not be read."""
        left, top = corner
        cell = self._cell
        if picture is None:
            self._draw.line((left, top, left + cell, top + cell), fill=FAINT)
            self._draw.line((left, top + cell, left + cell, top), fill=FAINT)
            return
        self.image.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))

    def _write(self, corner: tuple[int, int], text: str, room: int, points: int = POINTS, fill: str = TEXT) -> None:
        """One line of text, shortened in the middle to ``room`` pixels."""
        font = _font(points)
        text = visible(text)
        kept = len(text)
        shown = text
        while kept > 1 and self._draw.textlength(shown, font=font) > room:
            kept -= 1
            shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        self._draw.text(corner, shown, font=font, fill=fill)


@functools.cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / FONT), points)
