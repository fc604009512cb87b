"""Ranking evaluation: mAP, mINP and CMC of a gallery ranked for each query.

Protocol (METHOD of the field's benchmarks): gallery images of the query's identity *and* camera are removed;
junk (identity −1) counts neither as hit nor as miss; AP is the rectangular mean of precision at the hits, INP
the number of hits over the rank of the last one. A miss that ties with a hit ranks before it, so that
features that say nothing score as badly as they should, in whatever order the gallery comes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.evaluation.arrays import as_features, as_tensor, check_finite
from d3still.evaluation.labels import match
from d3still.evaluation.ranks import Scores, rank_by_product, rank_by_sorting
from d3still.evaluation.results import Measures, RankingResult
from d3still.evaluation.similarity import make_similarity
from d3still.evaluation.topk import ranked_lists


@torch.no_grad()
def evaluate_ranking(
    query_feats: Any,
    gallery_feats: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cams: Any,
    gallery_cams: Any,
    metric: str = "cosine",
    max_rank: int = 50,
    exclude_same_camera: bool = True,
    topk: int = 0,
) -> RankingResult:
    """Rank the gallery for each query by its features and measure the ranking.

    The ranking is that of double precision, whatever the type of the features; scores that differ by less than
    the rounding of double precision tie. Memory is bounded by blocks whose size depends on the gallery's size
    alone; the full score matrix never exists.

    Args:
        query_feats, gallery_feats: (Q, D), (G, D) raw features, tensors (CPU or CUDA) or arrays. "cosine"
            normalises them, "euclidean" takes them as they are. Half precision is ranked as float32.
        query_ids, gallery_ids: (Q,), (G,) identities, whole numbers; −1 is junk in the gallery, and a query
            without a match among the queries.
        query_cams, gallery_cams: (Q,), (G,) cameras, whole numbers. Where there are none, give each file a
            camera of its own: then an image found in both sets is removed from its own ranking.
        metric: "cosine" or "euclidean" (``TEST.TEST_METRIC``).
        max_rank: length of the CMC curve; beyond the gallery's size it keeps its last value.
        exclude_same_camera: the same-camera rule (``TEST.EXCLUDE_SAME_CAMERA``).
        topk: also return the best ``topk`` gallery images of every query (slower).

    Raises:
        UserError: for empty sets, other shapes, widths or types, NaN or infinite features (naming the
            images), an unknown metric, and when no query has a match left (naming the same-camera rule
            where that is why).
    """
    max_rank, topk = _at_least(1, max_rank, "max_rank"), _at_least(0, topk, "topk")
    query, gallery = as_features(query_feats, "query"), as_features(gallery_feats, "gallery")
    sizes = len(query), len(gallery)
    matches = match(query_ids, gallery_ids, query_cams, gallery_cams, sizes, exclude_same_camera)
    similarity = make_similarity(query, gallery, metric)
    rank = rank_by_sorting if similarity.on_cuda else rank_by_product
    queries, measures = np.flatnonzero(matches.num_hits), Measures.unset(len(query))
    measures.put(queries, rank(similarity, matches, queries))
    return measures.result(max_rank, ranked_lists(similarity, matches, topk) if topk else None)


@torch.no_grad()
def evaluate_distances(
    distances: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cams: Any,
    gallery_cams: Any,
    max_rank: int = 50,
    exclude_same_camera: bool = True,
    topk: int = 0,
) -> RankingResult:
    """Rank the gallery for each query by given distances, smaller is nearer, by the rules of `evaluate_ranking`.

    Args:
        distances: (Q, G), tensor or array, finite; for instance from `k_reciprocal_distances`. Equal numbers
            tie; nothing else does.

    The other arguments, the result and the errors are those of `evaluate_ranking`.
    """
    max_rank, topk = _at_least(1, max_rank, "max_rank"), _at_least(0, topk, "topk")
    given = GivenDistances(distances)
    sizes = given.distances.shape[0], given.distances.shape[1]
    matches = match(query_ids, gallery_ids, query_cams, gallery_cams, sizes, exclude_same_camera)
    check_finite(given.distances, "rows of distances")
    queries, measures = np.flatnonzero(matches.num_hits), Measures.unset(sizes[0])
    measures.put(queries, rank_by_sorting(given, matches, queries))
    return measures.result(max_rank, ranked_lists(given, matches, topk) if topk else None)


class GivenDistances(Scores):
    """Scores that are the negatives of given distances."""

    def __init__(self, distances: Any) -> None:
        self.distances = as_tensor(distances, "distances")
        if self.distances.ndim != 2:
            raise UserError(f"distances must have the shape (queries, gallery), not {tuple(self.distances.shape)}")

    def score_rows(self, queries: np.ndarray, gallery: np.ndarray) -> Tensor:
        rows, columns = (torch.from_numpy(index).to(self.distances.device) for index in (queries, gallery))
        return -self.distances.index_select(0, rows).index_select(1, columns).double()

    def slack(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return np.zeros(len(queries))

    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        rows, columns = (torch.from_numpy(index).to(self.distances.device) for index in (queries, gallery))
        return self.distances[rows, columns].double().cpu().numpy()


def _at_least(least: int, value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)
