"""Ranks of the hits from scores: fast from float32 products on the CPU, by sorting in double precision elsewhere.

Both ways rank by the scores in double precision. Two scores that differ by less than double precision's
own rounding tie, and a miss that ties with a hit ranks before it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from d3still.evaluation.counting import count_at_least
from d3still.evaluation.labels import Matches, row_starts
from d3still.evaluation.results import Measures, measure
from d3still.evaluation.similarity import Similarity

_BLOCK = 1 << 25  # float32 scores held at once: 128 MiB
_DOUBLE_BLOCK = 1 << 22  # double scores held at once; sorting takes several times their 32 MiB
_GROUP = 1 << 21  # scores that one worker counts at a time: enough to outweigh the calls, few enough for the cache
_MOST_WORKERS = 16  # bounds their memory, some 40 MiB each
_SAMPLE = (31, 255)  # queries and gallery images on which rounding is measured; odd, to meet every kernel
_SAMPLE_HITS = 4  # right answers of each sampled query among these images
_SAFETY = 2  # the largest error of a whole product over the largest of the sample
_CROWDED_SHARE = 1 / 16  # of a row's scores too near to a hit: then the whole row is scored in double precision
_CROWDED_FLOOR = 64
_UNIT_ROUNDOFF = 2.0**-24  # of single precision


class Scores(Protocol):
    """Where scores come from: features (`Similarity`) or given distances."""

    def score_rows(self, queries: np.ndarray, gallery: np.ndarray) -> Tensor: ...

    def slack(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray: ...

    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray: ...


def rows_at_once(num_gallery: int, block: int) -> int:
    """Rows of a chunk of at most ``block`` scores; depends on the gallery's size alone."""
    return max(1, block // max(1, num_gallery))


def rank_by_sorting(scores: Scores, matches: Matches, queries: np.ndarray) -> Measures:
    """Measures of ``queries``, each of which has a hit, from sorted rows of scores; on any device."""
    out = Measures.unset(len(queries))
    step = rows_at_once(len(matches.gallery_order), _DOUBLE_BLOCK)
    for low in range(0, len(queries), step):
        part = queries[low : low + step]
        rows, columns = matches.hits(part)
        counts = _sorted_counts(scores, matches, part, rows, columns)
        out.put(np.arange(low, low + len(part)), measure(rows, counts))
    return out


def _sorted_counts(
    scores: Scores, matches: Matches, queries: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Misses at or above each hit (T,)."""
    order = matches.gallery_order
    block = scores.score_rows(queries, order)
    slack = torch.from_numpy(scores.slack(queries[rows], order[columns])).to(block)
    slot = np.arange(len(rows)) - np.searchsorted(rows, rows)
    row, column, slot = (torch.from_numpy(index).to(block.device) for index in (rows, columns, slot))
    level = block.new_full((len(queries), int(matches.num_hits[queries].max())), torch.inf)
    level[row, slot] = block[row, column] - slack
    same = [torch.from_numpy(index).to(block.device) for index in matches.same_identity(queries)]
    block[same[0], same[1]] = -torch.inf
    below = torch.searchsorted(block.sort(dim=1).values, level)
    return (block.shape[1] - below)[row, slot].cpu().numpy()


def rank_by_product(similarity: Similarity, matches: Matches, queries: np.ndarray) -> Measures:
    """Measures of ``queries``, each of which has a hit, from float32 products on the CPU.

    Only how many misses lie at or above each hit is needed, so rows are neither sorted nor kept. A miss that
    float32 cannot tell from a hit is compared with it in double precision; a row with many of them (features
    that collapsed, binary codes) is scored in double precision as a whole.
    """
    order = matches.gallery_order
    gallery = similarity.gallery_rows(order, np.float32)
    error = rounding_error(similarity, matches, queries, gallery)
    out, crowded = Measures.unset(len(queries)), np.zeros(len(queries), dtype=bool)
    step, group = rows_at_once(len(order), _BLOCK), rows_at_once(len(order), _GROUP)
    buffer = np.empty((min(step, len(queries)), len(order)), dtype=np.float32)

    def finish(place: slice) -> None:
        block = buffer[place.start % step :][: place.stop - place.start]
        measures, crowded[place] = _rank_group(similarity, matches, queries[place], block, error)
        out.put(place, measures)

    with ThreadPoolExecutor(min(torch.get_num_threads(), _MOST_WORKERS)) as workers:
        for low in range(0, len(queries), step):
            left = similarity.query_rows(queries[low : low + step], np.float32)
            # numpy's product ignores autocast and torch's choice of precision, as an exact ranking must
            np.matmul(left, gallery.T, out=buffer[: len(left)])
            stops = [*range(low + group, low + len(left), group), low + len(left)]
            list(workers.map(finish, map(slice, range(low, low + len(left), group), stops)))
    again = np.flatnonzero(crowded)
    out.put(again, rank_by_sorting(similarity, matches, queries[again]))
    return out


def rounding_error(similarity: Similarity, matches: Matches, queries: np.ndarray, gallery: np.ndarray) -> float:
    """Bound on the error of a float32 score, in units of its magnitude.

    Measured on a sample that includes hits, whose scores, being the highest, have the largest errors: the
    bound that holds for every input, D times the unit roundoff, is a hundred times what occurs.
    """
    picked = queries[_evenly(len(queries), _SAMPLE[0])]
    rows, hits = matches.hits(picked)
    hits = np.concatenate([hits[at : at + _SAMPLE_HITS] for at in row_starts(rows)])
    columns = np.append(hits, _evenly(len(gallery), max(1, _SAMPLE[1] - len(hits))))
    single = similarity.query_rows(picked, np.float32) @ gallery[columns].T
    images = matches.gallery_order[columns]
    apart = np.abs(single - similarity.score_rows(picked, images).numpy())
    size = similarity.magnitude(np.repeat(picked, len(images)), np.tile(images, len(picked)))
    apart = apart.ravel()[size > 0] / size[size > 0]
    least = _UNIT_ROUNDOFF * max(1, np.sqrt(gallery.shape[1]) / 8)  # in case the sample happens to round well
    return max(_SAFETY * float(apart.max(initial=0)), least)


def _evenly(length: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64))


def _rank_group(
    similarity: Similarity, matches: Matches, queries: np.ndarray, block: np.ndarray, error: float
) -> tuple[Measures, np.ndarray]:
    """Measures of a few queries from their rows of float32 scores, and which of them are crowded."""
    rows, columns = matches.hits(queries)
    image = matches.gallery_order[columns]
    level = block[rows, columns].astype(np.float64)
    block[matches.same_identity(queries)] = -np.inf
    # A score and a level are each off by the error at most.
    count = count_at_least(block, rows, level, 2 * error * similarity.magnitude(queries[rows], image))
    near = np.bincount(rows[count.near_level], minlength=len(queries))
    crowded = count.crowded | (near > block.shape[1] * _CROWDED_SHARE + _CROWDED_FLOOR)
    kept = ~crowded[rows[count.near_level]]
    hit, column = count.near_level[kept], count.near_column[kept]
    hits, hit = np.unique(hit, return_inverse=True)
    level = similarity.score_pairs(queries[rows[hits]], image[hits])
    level -= similarity.slack(queries[rows[hits]], image[hits])
    score = similarity.score_pairs(queries[rows[hits[hit]]], matches.gallery_order[column])
    above = np.bincount(hits[hit[score >= level[hit]]], minlength=len(rows))
    return measure(rows, count.certain + above), crowded
