"""The ranked lists themselves, on request: the best gallery images of each query."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from d3still.evaluation.labels import Matches
from d3still.evaluation.ranks import Scores, rows_at_once
from d3still.evaluation.results import RankedLists

_BLOCK = 1 << 22  # double scores held at once


def ranked_lists(scores: Scores, matches: Matches, topk: int) -> RankedLists:
    """The best ``topk`` gallery images of every query, in the order that the measures are computed in.

    Among equal scores misses come before hits; further ties go by place in the gallery.
    """
    num_queries, order = len(matches.start), matches.gallery_order
    length = min(topk, len(order))
    shape = (num_queries, length)
    lists = RankedLists(np.full(shape, -1), np.full(shape, np.nan), np.zeros(shape, dtype=bool))
    step = rows_at_once(len(order), _BLOCK)
    for low in range(0, num_queries, step):
        queries = np.arange(low, min(low + step, num_queries))
        row, column, rank, hit = _best(scores, matches, queries, length)
        lists.indices[queries[row], rank] = order[column]
        lists.scores[queries[row], rank] = scores.shown(queries[row], order[column])
        lists.hits[queries[row], rank] = hit
    return lists


def _best(scores: Scores, matches: Matches, queries: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Row, column, rank from 0 and whether it is a hit, for each entry of the lists of ``queries``."""
    order = matches.gallery_order
    given, block, is_hit = _ordering(scores, matches, queries)
    worst, place = (best[:, -1] for best in block.topk(length, dim=1))
    margin = scores.slack(queries, order[place.cpu().numpy()])
    reach = (worst - torch.from_numpy(margin).to(block))[:, None]
    row, column = torch.nonzero((block >= reach) & (block > -torch.inf), as_tuple=True)  # ties may be more
    key, score, hit = (of[row, column].cpu().numpy() for of in (block, given, is_hit))
    row, column = row.cpu().numpy(), column.cpu().numpy()
    by_key = np.lexsort((hit, -key, row))
    sequence = by_key[_untie(row[by_key], score[by_key], hit[by_key], order[column][by_key], margin)]
    row, column, hit = row[sequence], column[sequence], hit[sequence]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < length
    return row[kept], column[kept], rank[kept], hit[kept]


def _ordering(scores: Scores, matches: Matches, queries: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, numbers to order by (minus infinity for what is removed), and which of them are hits."""
    order = matches.gallery_order
    given = scores.score_rows(queries, order)
    block = given.clone()
    rows, columns = matches.hits(queries)
    hits = _on(block, rows), _on(block, columns)
    # What is as near as a hit, within rounding, comes before it.
    block[hits] -= torch.from_numpy(scores.slack(queries[rows], order[columns])).to(block)
    own_row, own_column = matches.own_camera(queries)
    block[_on(block, own_row), _on(block, own_column)] = -torch.inf
    is_hit = torch.zeros_like(block, dtype=torch.bool)
    is_hit[hits] = True
    return given, block, is_hit


def _untie(row: np.ndarray, score: np.ndarray, hit: np.ndarray, image: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Order of sorted entries once neighbours of one kind that differ by rounding alone go by image."""
    apart = np.abs(np.diff(score)) > margin[row[1:]]
    new_group = (np.diff(row) != 0) | (hit[1:] != hit[:-1]) | apart
    group = np.cumsum(np.append(False, new_group))[: len(row)]
    return np.lexsort((image, group))


def _on(block: Tensor, index: np.ndarray) -> Tensor:
    return torch.from_numpy(index).to(block.device)
