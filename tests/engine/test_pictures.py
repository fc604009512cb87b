"""Ranked lists at a glance."""

import numpy as np
import pytest
from PIL import Image

from d3still.data import ImageError, Sample
from d3still.engine.pictures import CELL, FRAME, HIT, MISS, PAPER, list_grid
from d3still.evaluation import evaluate_ranking


def test_hits_are_framed_green_and_misses_red(tmp_path):
    """Two queries of the same features as the first gallery image: of identity 1, a hit first; of 2, a miss first."""
    files = []
    for value in (10, 200):
        files.append(str(tmp_path / f"{value}.png"))
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(files[-1])
    gallery = [Sample(files[0], 1, 1), Sample(files[1], 2, 1)]
    query = [Sample(files[1], 1, 0), Sample(files[1], 2, 0)]
    result = evaluate_ranking(np.eye(2)[[0, 0]], np.eye(2), [1, 2], [1, 2], [0, 0], [1, 1], topk=2)
    grid = list_grid(query, gallery, result, (8, 4))
    side = CELL + 2 * FRAME
    assert grid.shape == (2 * side, 3 * side, 3) and grid.dtype == np.uint8
    corners = grid[::side, ::side].tolist()
    assert corners == [[list(PAPER), list(HIT), list(MISS)], [list(PAPER), list(MISS), list(HIT)]]
    middles = grid[side // 2 :: side, side // 2 :: side, 0].tolist()
    assert middles == [[200, 10, 200], [200, 10, 200]], "the query, then the gallery in its order"
    with pytest.raises(ImageError, match="MAX_PIXELS 599"):  # of images of 20 × 30
        list_grid(query, gallery, result, (8, 4), max_pixels=599)
