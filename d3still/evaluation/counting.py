"""Counting scores at or above many levels at once, without sorting: a histogram, then only its hot cells.

A row of N scores and P levels costs a few passes over the row, where sorting it would cost far more. The row
is cut into cells of equal width; whole cells above a level's own are counted by a running sum, and only the
scores in a level's own cells are compared with it one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from d3still.evaluation.labels import row_starts, spans

# Cells of a row = this · sqrt(levels · scores): balances the running sum over all cells against the scores
# compared one by one (measured).
_CELL_FACTOR = 6
_CELL_RANGE = (64, 1 << 15)
_BELOW, _ABOVE = 1.5, 1.5  # cells kept free below the lowest and above the highest level
_REACHED_SHARE = 1 / 2  # of the scores at or above the lowest level; with more, all scores are counted
# A row that would compare more than this share of its scores one by one is left to the caller.
_CROWDED_SHARE = 1 / 2
_CROWDED_FLOOR = 32
_TINY = 1e-25  # levels nearer to zero than this get no finer cells, so that 1 / step stays finite

Spread = Callable[[np.ndarray], np.ndarray]  # lays a number of each row out over that row's scores


@dataclass(frozen=True)
class Count:
    """How many scores of its row are at or above each level.

    ``certain`` (T,) counts the scores higher than the level by its tolerance or more. The scores nearer to it
    than that are listed: score ``near_column[i]`` of the row of level ``near_level[i]``. ``crowded`` (rows,)
    marks rows that were given up, whose other entries mean nothing.
    """

    certain: np.ndarray
    near_level: np.ndarray
    near_column: np.ndarray
    crowded: np.ndarray


def count_at_least(scores: np.ndarray, rows: np.ndarray, level: np.ndarray, tolerance: np.ndarray) -> Count:
    """Count the scores at or above each level of their own row.

    Args:
        scores: (R, N) float32; minus infinity for what must not count.
        rows: (T,) the row of each level, ascending; every row has at least one.
        level, tolerance: (T,) float64, finite.
    """
    num_rows, width = scores.shape
    start, low, high = row_starts(rows), level - tolerance, level + tolerance
    bottom, top = np.minimum.reduceat(low, start), np.maximum.reduceat(high, start)
    reached, spread, index = _reached(scores, bottom.astype(np.float32))
    grid = _Grid.over(bottom, top, np.maximum.reduceat(tolerance, start), len(rows) * reached.size)
    cell = grid.cells(reached, spread).ravel()
    population = np.bincount(cell, minlength=num_rows * grid.size)
    first, last = (grid.cells(end.astype(np.float32), lambda of_row: of_row[rows]) for end in (low, high))
    owner, hot = spans(first, last + 1)  # level owner[i] needs a closer look at cell hot[i]
    load = np.bincount(rows[owner], weights=population[hot], minlength=num_rows)
    crowded = load > width * _CROWDED_SHARE + _CROWDED_FLOOR

    running = np.cumsum(population, out=population)
    certain = running[(rows + 1) * grid.size - 1] - running[last]
    kept = ~crowded[rows[owner]]
    member, owner = _members(cell, hot[kept], owner[kept], len(population))
    member = member if index is None else index[member]
    above = scores.ravel()[member] - level[owner]
    certain += np.bincount(owner[above >= tolerance[owner]], minlength=len(level))
    near = np.abs(above) < tolerance[owner]
    return Count(certain, owner[near], member[near] % width, crowded)


def _reached(scores: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, Spread, np.ndarray | None]:
    """Scores that some level of their row can reach, and their flat index; index None stands for all scores.

    Where the hits rank high, most scores are below every level: leaving them out costs less than counting
    them, the more so as they would all fall into one cell, one waiting for the other.
    """
    reached = scores >= bottom[:, None]
    if np.count_nonzero(reached) > _REACHED_SHARE * scores.size:
        return scores, lambda of_row: of_row[:, None], None
    index = np.flatnonzero(reached)
    in_row = np.diff(np.searchsorted(index, np.arange(len(scores) + 1) * scores.shape[1]))
    return scores.take(index), lambda of_row: np.repeat(of_row, in_row), index


@dataclass(frozen=True)
class _Grid:
    """Cells of equal width, a set of ``size`` for each row, numbered through all rows.

    The cell never falls when the score rises, whatever the rounding: counts need no more than that.
    """

    size: int
    bottom: np.ndarray  # (rows,) float32
    scale: np.ndarray  # (rows,) float32
    offset: np.ndarray  # (rows,) int32, number of the first cell

    @staticmethod
    def over(bottom: np.ndarray, top: np.ndarray, tolerance: np.ndarray, work: int) -> _Grid:
        """Cells over [bottom, top] of each row; what lies outside falls into the first and last one.

        ``work`` is the number of levels times the number of scores, of all rows.
        """
        size = int(np.clip(_CELL_FACTOR * np.sqrt(work) / len(bottom), *_CELL_RANGE))
        largest = np.maximum(np.maximum(np.abs(bottom), np.abs(top)), _TINY)
        # Finer cells would be narrower than float32 can tell, or many within one tolerance.
        finest = np.maximum(4 * np.spacing(largest.astype(np.float32)), tolerance)
        step = np.maximum((top - bottom) / (size - _BELOW - _ABOVE), finest)
        offset = np.arange(len(bottom), dtype=np.int32) * np.int32(size)
        return _Grid(size, (bottom - _BELOW * step).astype(np.float32), (1 / step).astype(np.float32), offset)

    def cells(self, scores: np.ndarray, spread: Spread) -> np.ndarray:
        """Cell number of each score (int32)."""
        place = scores - spread(self.bottom)
        place *= spread(self.scale)
        np.clip(place, 0, self.size - 1, out=place)
        cell = place.astype(np.int32)
        cell += spread(self.offset)
        return cell


def _members(cell: np.ndarray, hot: np.ndarray, owner: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """All (score, level) pairs that share a hot cell: place of the score in ``cell``, number of the level."""
    order = np.argsort(hot)
    hot, owner = hot[order], owner[order]
    start = row_starts(hot)
    stop = np.append(start[1:], len(hot))
    is_hot = np.zeros(num_cells, dtype=bool)
    is_hot[hot] = True
    group = np.empty(num_cells, dtype=np.int32)  # read at hot cells only
    group[hot[start]] = np.arange(len(start))
    member = np.flatnonzero(is_hot.take(cell, mode="clip"))  # without mode, a copy of what take writes
    in_group = group[cell[member]]
    who, entry = spans(start[in_group], stop[in_group])
    return member[who], owner[entry]
