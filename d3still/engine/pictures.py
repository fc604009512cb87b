"""Ranked lists at a glance, for TensorBoard; those with words are reporting's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from d3still.data import Sample, read_image
from d3still.data.image import MAX_PIXELS
from d3still.data.transforms import resize
from d3still.evaluation import RankingResult

CELL, FRAME = 96, 4  # pixels
HIT, MISS, PAPER = (0, 158, 115), (204, 51, 17), (255, 255, 255)


def list_grid(
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    result: RankingResult,
    query_size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A row a query: what the network saw of it, then its best gallery images, framed green (hit) or red (miss).

    Args:
        query, gallery: the images that were ranked, in order.
        result: of `evaluate_ranking` with ``topk`` above 0.
        query_size: (height, width) at which the queries were embedded.
        max_pixels: the largest image that is decoded, see `d3still.data.image.read_image`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: a file cannot be read.
    """

    def read(sample: Sample) -> Tensor:
        return read_image(sample.path, sample.box, max_pixels)

    rows = []
    for sample, places, hits in zip(query, result.topk.indices, result.topk.hits, strict=True):
        cells = [_cell(resize(read(sample), query_size), PAPER)]
        for place, hit in zip(places.tolist(), hits.tolist(), strict=True):
            pixels = read(gallery[place]) if place >= 0 else None
            cells.append(_cell(pixels, HIT if hit else MISS))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _cell(pixels: Tensor | None, colour: tuple[int, int, int]) -> np.ndarray:
    """An image in a frame, (side, side, 3); white where the list has ended."""
    side = CELL + 2 * FRAME
    cell = np.full((side, side, 3), PAPER if pixels is None else colour, np.uint8)
    if pixels is not None:
        cell[FRAME:-FRAME, FRAME:-FRAME] = resize(pixels, (CELL, CELL)).permute(1, 2, 0).numpy()
    return cell
