"""Ranks of the hits, and ranked lists, from a source of scores: a product decides, and what it cannot, exact scores do.

A miss ranks before a hit when its exact score is at least the hit's less what ties with it. The product's scores come
with a bound on their error, so that for nearly every pair they settle this; the others are scored exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from d3still.evaluation.labels import Matches, row_starts
from d3still.evaluation.results import RankedLists, measure

_BLOCK = 1 << 25  # float32 scores held at once: 128 MiB
_GROUP = 1 << 20  # scores that one worker takes at a time: some 60 MiB while it counts them
_MOST_WORKERS = 4

Pairs = tuple[np.ndarray, np.ndarray]


class Scores(Protocol):
    """Where scores come from: features (`Similarity`) or given distances; columns are the gallery without junk."""

    def product(self, queries: np.ndarray, out: np.ndarray) -> None: ...

    def bands(self, queries: np.ndarray, columns: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def exact(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray: ...

    def as_product(self, queries: np.ndarray, exact: np.ndarray) -> np.ndarray: ...

    def tie(self, score: np.ndarray) -> np.ndarray: ...

    def shown(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray: ...


def rank(scores: Scores, matches: Matches) -> np.ndarray:
    """AP, INP and first hit of every query (3, Q), NaN for those without a hit."""
    measures = np.full((3, len(matches.start)), np.nan)
    with ThreadPoolExecutor(min(torch.get_num_threads(), _MOST_WORKERS)) as workers:

        def finish(part: tuple[np.ndarray, np.ndarray]) -> None:
            queries, block = part
            rows, before = _misses_before(scores, matches, queries, block)
            measures[:, queries] = measure(rows, before)

        for groups in _blocks(scores, matches, np.flatnonzero(matches.num_hits)):
            list(workers.map(finish, groups))
    return measures


def _blocks(scores: Scores, matches: Matches, queries: np.ndarray) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Queries with their scores (n, N), in groups for one worker each; a block of groups at a time."""
    width = len(matches.gallery_order)
    step, group = (max(1, count // width) for count in (_BLOCK, _GROUP))
    buffer = np.empty((min(step, len(queries)), width), dtype=np.float32)
    for low in range(0, len(queries), step):
        part = queries[low : low + step]
        scores.product(part, out=buffer[: len(part)])
        cuts = range(0, len(part), group)
        yield [(part[at : at + group], buffer[at : min(at + group, len(part))]) for at in cuts]


def _misses_before(
    scores: Scores, matches: Matches, queries: np.ndarray, block: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row of each hit of ``queries``, and how many misses rank before it (T,). Overwrites ``block``."""
    rows, columns = matches.hits(queries)
    level = block[rows, columns].astype(np.float64)
    block[matches.same_identity(queries)] = -np.inf
    tie, error = scores.bands(queries[rows], columns, level)
    low = level - tie
    floor = _rounded(np.minimum.reduceat(low - error, row_starts(rows)), down=True)
    flat = np.flatnonzero(block >= floor[:, None])
    row, column = np.divmod(flat, block.shape[1])
    bits = block.shape[1].bit_length()
    line = np.sort(_key(row, block.ravel()[flat], bits) | column)  # all rows, one behind the other
    end = line.searchsorted(_key(rows + 1, np.float32([-np.inf]), bits))
    start, stop = _between(line, bits, rows, low, error)
    before, unsure = end - stop, (start < stop).nonzero()[0]
    if len(unsure):  # the hit's exact score leaves only the misses' errors
        asking = queries[rows[unsure]]
        exact = scores.exact(asking, columns[unsure])
        lowest = exact - scores.tie(exact)
        start, stop = _between(line, bits, rows[unsure], scores.as_product(asking, lowest), error[unsure] / 2)
        misses = queries[line >> (32 + bits)], line & ((1 << bits) - 1)
        before[unsure] = end[unsure] - stop + _settled(scores, asking, lowest, misses, start, stop)
    return rows, before


def _settled(
    scores: Scores, queries: np.ndarray, lowest: np.ndarray, misses: Pairs, start: np.ndarray, stop: np.ndarray
) -> np.ndarray:
    """How many of the misses in doubt for hit i, numbers ``start[i]`` to ``stop[i]``, score ``lowest[i]`` or more.

    Misses in doubt for other hits alone are known to score more, or less, and their exact scores say so too: those
    of a query are scored and sorted once, for all its hits.
    """
    steps = np.bincount(start, minlength=len(misses[0]) + 1) - np.bincount(stop, minlength=len(misses[0]) + 1)
    in_doubt = steps.cumsum()[:-1] > 0
    query, column = misses[0][in_doubt], misses[1][in_doubt]
    value = np.concatenate([scores.exact(query, column), lowest])
    is_miss = np.arange(len(value)) < len(query)
    order = np.lexsort((is_miss, value, np.concatenate([query, queries])))
    below = np.empty(len(value), dtype=np.int64)
    below[order] = is_miss[order].cumsum()
    through = np.append(0, in_doubt.cumsum())
    return through[stop] - below[len(query) :]


def _between(line: np.ndarray, bits: int, rows: np.ndarray, middle: np.ndarray, error: np.ndarray) -> Pairs:
    """Where on the line the scores of these rows begin and end that lie within the error of the middle."""
    edges = _rounded(middle - error, down=True), _rounded(middle + error, down=False)
    start, stop = (line.searchsorted(_key(rows, edge, bits)) for edge in edges)
    return start, stop


def _key(row: np.ndarray, value: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers (int64) that sort by row, then by float32 value; their lowest ``bits`` are free."""
    pattern = value.view(np.int32).astype(np.int64)
    ascending = np.where(pattern < 0, -1 - (pattern & 0x7FFFFFFF), pattern) + (1 << 31)
    return ((row << 32) + ascending) << bits


def _rounded(bound: np.ndarray, down: bool) -> np.ndarray:
    """float32 numbers that lie not above the bounds, or not below them."""
    return np.nextafter(bound.astype(np.float32), np.float32(-np.inf if down else np.inf))


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
                columns = _best(scores, matches, query, row, shape[1])
                here = slice(None, len(columns))
                lists.indices[query, here] = order[columns]
                lists.scores[query, here] = scores.shown(np.full(len(columns), query), columns)
                lists.hits[query, here] = (columns >= matches.start[query]) & (columns < matches.stop[query])
    return lists


def _best(scores: Scores, matches: Matches, query: int, row: np.ndarray, length: int) -> np.ndarray:
    """The columns that rank first, in order."""
    last = row.argpartition(-length)[[-length]]
    tie, error = scores.bands(np.array([query]), last, row[last].astype(np.float64))
    bound = _rounded(row[last] - 2 * tie - error, down=True) if np.isfinite(row[last]) else -np.inf
    columns = (np.isfinite(row) & (row >= bound)).nonzero()[0]
    image, score = matches.gallery_order[columns], scores.exact(np.full(len(columns), query), columns)
    hit, tie = (columns >= matches.start[query]) & (columns < matches.stop[query]), scores.tie(score)
    best = np.lexsort((hit, tie * hit - score))  # what ties with a hit comes before it
    hit, score, tie = hit[best], score[best], tie[best]
    apart = (hit[1:] != hit[:-1]) | (np.abs(np.diff(score)) > tie[1:])
    group = np.append(0, np.cumsum(apart))[: len(best)]
    return columns[best[np.lexsort((image[best], group))]][:length]
