"""Ranking evaluation: mAP, mINP and CMC of a gallery ranked for each query.

Protocol (METHOD of the field's benchmarks): gallery images of the query's identity *and* camera are removed;
junk (identity −1) counts neither as hit nor as miss; AP is the rectangular mean of precision at the hits, INP
the number of hits over the rank of the last one. A miss that ties with a hit ranks before it, so that
features that say nothing score as badly as they should, in whatever order the gallery comes.
"""

from __future__ import annotations

from typing import Any

import torch

from d3still.errors import UserError
from d3still.evaluation.arrays import as_tensor, at_least, check_finite, comparable
from d3still.evaluation.labels import Matches, match
from d3still.evaluation.ranks import rank, ranked_lists
from d3still.evaluation.results import RankingResult
from d3still.evaluation.scores import Distances, Scores, Similarity


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

    What is guaranteed: the ranking is that of scores in double precision, −‖q − g‖² / 2 of the features (of unit
    vectors for "cosine"), each summed in one fixed order: on every device, with any number of threads and in
    whatever blocks, the same bits. A float32 product decides only what its error, bounded for every order of
    summation, leaves no doubt about. Two scores s tie when they differ by at most 2⁻⁴⁹·|s|, and cosines also when
    they differ by at most 2⁻⁵², the spacing of doubles at 1: equal numbers that only round differently do tie, and
    of cosines farther apart than 4·10⁻¹⁵ none do.

    Memory is bounded by blocks of scores; the full score matrix never exists. Speed is that of the product as long
    as few pairs are in doubt; features of which most pairs are (hash codes, much noise around one point) take longer.

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
    max_rank, topk = at_least(1, max_rank, "max_rank"), at_least(0, topk, "topk")
    query, gallery = comparable(query_feats, gallery_feats)
    sizes = len(query), len(gallery)
    matches = match(query_ids, gallery_ids, query_cams, gallery_cams, sizes, exclude_same_camera)
    return _ranked(Similarity(query, gallery, metric, matches.gallery_order), matches, max_rank, topk)


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
    max_rank, topk = at_least(1, max_rank, "max_rank"), at_least(0, topk, "topk")
    given = as_tensor(distances, "distances")
    if given.ndim != 2:
        raise UserError(f"distances must have the shape (queries, gallery), not {tuple(given.shape)}")
    matches = match(query_ids, gallery_ids, query_cams, gallery_cams, tuple(given.shape), exclude_same_camera)
    check_finite(given, "rows of distances")
    return _ranked(Distances(given.cpu().numpy(), matches.gallery_order), matches, max_rank, topk)


def _ranked(scores: Scores, matches: Matches, max_rank: int, topk: int) -> RankingResult:
    lists = ranked_lists(scores, matches, topk) if topk else None
    return RankingResult.of(rank(scores, matches), max_rank, lists)
