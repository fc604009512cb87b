"""Ranks of the hits, and ranked lists, from a source of scores: a product decides, and what it cannot, exact scores do.

A miss ranks before a hit when its exact score is at least the hit's less what ties with it. The product's scores come
with a bound on their error, so that for nearly every pair they settle this; the others are scored exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from d3still.evaluation.labels import Matches, row_starts, spans
from d3still.evaluation.results import RankedLists, measure
from d3still.evaluation.scores import Scores

_BLOCK = 1 << 25  # float32 scores held at once: 128 MiB
_GROUP = 1 << 20  # scores that one worker takes at a time: some 60 MiB while it counts them
_MOST_WORKERS = 4
_LEVEL_BITS = 15  # at least, of scores between a query's lowest hit and its best answer

Arrays = tuple[np.ndarray, np.ndarray]


def rank(scores: Scores, matches: Matches) -> np.ndarray:
    """AP, INP and first hit of every query (3, Q), NaN for those without a hit."""
    measures = np.full((3, len(matches.start)), np.nan)
    with ThreadPoolExecutor(min(torch.get_num_threads(), _MOST_WORKERS)) as workers:

        def finish(part: Arrays) -> None:
            queries, block = part
            rows, before = _misses_before(scores, matches, queries, block)
            measures[:, queries] = measure(rows, before)

        for groups in _blocks(scores, matches, np.flatnonzero(matches.num_hits)):
            list(workers.map(finish, groups))
    return measures


def _blocks(scores: Scores, matches: Matches, queries: np.ndarray) -> Iterator[list[Arrays]]:
    """Queries with their scores (n, N), in groups for one worker each; a block of groups at a time."""
    width = len(matches.gallery_order)
    step, group = (max(1, count // width) for count in (_BLOCK, _GROUP))
    buffer = np.empty((min(step, len(queries)), width), dtype=np.float32)
    for low in range(0, len(queries), step):
        part = queries[low : low + step]
        scores.product(part, out=buffer[: len(part)])
        cuts = range(0, len(part), group)
        yield [(part[at : at + group], buffer[at : min(at + group, len(part))]) for at in cuts]


def _misses_before(scores: Scores, matches: Matches, queries: np.ndarray, block: np.ndarray) -> Arrays:
    """Row of each hit of ``queries``, and how many misses rank before it (T,). Overwrites ``block``."""
    rows, columns = matches.hits(queries)
    level = block[rows, columns].astype(np.float64)
    block[matches.same_identity(queries)] = -np.inf
    tie, error = scores.bands(queries[rows], columns, level)
    low = level - tie
    line = _Line(block, np.minimum.reduceat(low - error, row_starts(rows)))
    start, stop = line.between(rows, low - error, low + error)
    before, unsure = line.ends[rows] - stop, (start < stop).nonzero()[0]
    if len(unsure):  # the hit's exact score leaves only the misses' errors
        asking = queries[rows[unsure]]
        exact = scores.exact(asking, columns[unsure])
        lowest = exact - scores.tie(exact)
        middle = scores.as_product(asking, lowest)
        start, stop = line.between(rows[unsure], middle - error[unsure] / 2, middle + error[unsure] / 2)
        places = _union(start, stop)
        row, column = line.at(places)
        behind = _behind(asking, lowest, queries[row], scores.exact(queries[row], column))
        before[unsure] = line.ends[rows[unsure]] - stop + places.searchsorted(stop) - behind
    return rows, before


class _Line:
    """The scores of a block that are not below their row's floor, all rows one behind the other, each ascending.

    They stand as whole numbers: a level between the floor and the row's highest score, and the column. Scores of one
    level are not told apart.
    """

    def __init__(self, block: np.ndarray, floor: np.ndarray) -> None:
        wanted = block >= _rounded_down(floor)[:, None]
        counts = np.count_nonzero(wanted, axis=1)
        self.ends = counts.cumsum()
        self._rows = np.repeat(np.arange(len(block)), counts)
        flat = np.flatnonzero(wanted)
        self._bits = block.shape[1].bit_length()
        self._highest = (1 << max(_LEVEL_BITS, 32 - self._bits)) - 1
        self._floor, top = floor, block.max(axis=1)
        width = np.maximum(top - floor, 0)
        self._scale = np.divide(self._highest - 1, width, out=np.zeros_like(width), where=width > 0)
        keys = self._levels(self._rows, block.ravel()[flat]) << self._bits
        keys |= flat - self._rows * block.shape[1]
        if self._highest << self._bits < 1 << 32:
            keys = keys.astype(np.uint32)  # sorted in half the time
        for low, high in zip(self.ends - counts, self.ends, strict=True):
            keys[low:high].sort()
        self._row_shift = self._bits + self._highest.bit_length()
        self._keys = keys + (self._rows << self._row_shift)

    def _levels(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Whole numbers that never fall where scores rise."""
        return np.clip((scores - self._floor[rows]) * self._scale[rows], 0, self._highest).astype(np.int64)

    def between(self, rows: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> Arrays:
        """Where on the line the scores of these rows begin and end that may lie between two numbers."""
        first, last = (self._levels(rows, edge) for edge in (lowest, highest))
        base = rows << self._row_shift
        return tuple(self._keys.searchsorted(base + (edge << self._bits)) for edge in (first, last + 1))

    def at(self, places: np.ndarray) -> Arrays:
        """Row and column of the scores at these places of the line."""
        return self._rows[places], self._keys[places] & ((1 << self._bits) - 1)


def _union(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The whole numbers that lie in any of these half-open intervals, ascending."""
    order = start.argsort()
    reach = np.maximum.accumulate(stop[order])
    first = np.append(True, start[order][1:] > reach[:-1])
    return spans(start[order][first], reach[np.append(first[1:], True)])[1]


def _behind(hit_query: np.ndarray, lowest: np.ndarray, miss_query: np.ndarray, score: np.ndarray) -> np.ndarray:
    """How many of all queries' misses, in one order, come before each hit when a query's hits and misses are sorted.

    Of a query's misses those that score less than the hit's ``lowest`` come before it.
    """
    value = np.concatenate([score, lowest])
    is_miss = np.arange(len(value)) < len(score)
    order = np.lexsort((is_miss, value, np.concatenate([miss_query, hit_query])))
    below = np.empty(len(value), dtype=np.int64)
    below[order] = is_miss[order].cumsum()
    return below[len(score) :]


def _rounded_down(bound: np.ndarray) -> np.ndarray:
    """float32 numbers that lie not above the bounds."""
    return np.nextafter(bound.astype(np.float32), np.float32(-np.inf))


def ranked_lists(scores: Scores, matches: Matches, topk: int) -> RankedLists:
    """The best ``topk`` gallery images of every query, in the order that the measures are computed in.

    Among images that tie misses come before hits; further ties go by place in the gallery.
    """
    order = matches.gallery_order
    shape = (len(matches.start), min(topk, len(order)))
    lists = RankedLists(np.full(shape, -1), np.full(shape, np.nan), np.zeros(shape, dtype=bool))
    for groups in _blocks(scores, matches, np.arange(shape[0])):
        for queries, block in groups:
            block[matches.own_camera(queries)] = -np.inf
            for query, row in zip(queries, block, strict=True):
                columns, hits = _best(scores, matches, query, row, shape[1])
                here = slice(None, len(columns))
                lists.indices[query, here] = order[columns]
                lists.scores[query, here] = scores.shown(np.full(len(columns), query), columns)
                lists.hits[query, here] = hits
    return lists


def _best(scores: Scores, matches: Matches, query: int, row: np.ndarray, length: int) -> Arrays:
    """The columns that rank first, in order, and which are of the query's identity."""
    last = row.argpartition(-length)[[-length]]
    tie, error = scores.bands(np.array([query]), last, row[last].astype(np.float64))
    bound = _rounded_down(row[last] - 2 * tie - error) if np.isfinite(row[last]) else -np.inf
    columns = (np.isfinite(row) & (row >= bound)).nonzero()[0]
    image, score = matches.gallery_order[columns], scores.exact(np.full(len(columns), query), columns)
    hit, tie = (columns >= matches.start[query]) & (columns < matches.stop[query]), scores.tie(score)
    best = np.lexsort((hit, tie * hit - score))  # what ties with a hit comes before it
    hit, score, tie = hit[best], score[best], tie[best]
    apart = (hit[1:] != hit[:-1]) | (np.abs(np.diff(score)) > tie[1:])
    group = np.append(0, np.cumsum(apart))[: len(best)]
    order = np.lexsort((image[best], group))[:length]
    return columns[best[order]], hit[order]
