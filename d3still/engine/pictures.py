"""Ranked lists at a glance, for TensorBoard; those with words are reporting's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d3still.data import Sample, read_image
from d3still.data.transforms import resize
from d3still.evaluation import RankingResult

CELL, FRAME = 96, 4  # pixels
HIT, MISS, PAPER = (0, 158, 115), (204, 51, 17), (255, 255, 255)


def list_grid(
    query: Sequence[Sample], gallery: Sequence[Sample], result: RankingResult, query_size: tuple[int, int]
) -> np.ndarray:
    """A row a query: what the network saw of it, then its best gallery images, framed green (hit) or red (miss).

    Args:
        query, gallery: the images that were ranked, in order.
        result: of `evaluate_ranking` with ``topk`` above 0.
        query_size: (height, width) at which the queries were embedded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: a file cannot be read.
    """
    rows = []
    for sample, places, hits in zip(query, result.topk.indices, result.topk.hits, strict=True):
        cells = [_cell(sample, PAPER, query_size)]
        for place, hit in zip(places.tolist(), hits.tolist(), strict=True):
            cells.append(_cell(gallery[place] if place >= 0 else None, HIT if hit else MISS))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _cell(sample: Sample | None, colour: tuple[int, int, int], seen_at: tuple[int, int] | None = None) -> np.ndarray:
    """An image in a frame, (side, side, 3); white where the list has ended."""
    side = CELL + 2 * FRAME
    cell = np.full((side, side, 3), PAPER if sample is None else colour, np.uint8)
    if sample is not None:
        pixels = read_image(sample.path, sample.box)
        pixels = resize(pixels if seen_at is None else resize(pixels, seen_at), (CELL, CELL))
        cell[FRAME:-FRAME, FRAME:-FRAME] = pixels.permute(1, 2, 0).numpy()
    return cell
