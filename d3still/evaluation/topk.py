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
    block = scores.score_rows(queries, order)
    rows, columns = matches.hits(queries)
    hit_row, hit_column = _on(block, rows), _on(block, columns)
    slack = torch.from_numpy(scores.slack(queries[rows], order[columns])).to(block)
    block[hit_row, hit_column] -= slack  # what is as near as a hit, within rounding, comes before it
    own_row, own_column = (_on(block, index) for index in matches.own_camera(queries))
    block[own_row, own_column] = -torch.inf
    is_hit = torch.zeros_like(block, dtype=torch.bool)
    is_hit[hit_row, hit_column] = True

    worst = block.topk(length, dim=1).values[:, -1:]
    row, column = torch.nonzero((block >= worst) & (block > -torch.inf), as_tuple=True)  # ties may be more
    score, hit = block[row, column].cpu().numpy(), is_hit[row, column].cpu().numpy()
    row, column = row.cpu().numpy(), column.cpu().numpy()
    sequence = np.lexsort((order[column], hit, -score, row))
    row, column, hit = row[sequence], column[sequence], hit[sequence]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < length
    return row[kept], column[kept], rank[kept], hit[kept]


def _on(block: Tensor, index: np.ndarray) -> Tensor:
    return torch.from_numpy(index).to(block.device)
