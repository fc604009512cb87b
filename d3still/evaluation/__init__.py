"""Ranking, re-ranking and feature files: needs only arrays, knows no network."""

from d3still.evaluation.features import FeatureSet, load_features, pair_cameras, save_features
from d3still.evaluation.ranking import evaluate_distances, evaluate_ranking
from d3still.evaluation.reranking import k_reciprocal_distances
from d3still.evaluation.results import RankedLists, RankingResult

__all__ = [
    "FeatureSet",
    "RankedLists",
    "RankingResult",
    "evaluate_distances",
    "evaluate_ranking",
    "k_reciprocal_distances",
    "load_features",
    "pair_cameras",
    "save_features",
]
