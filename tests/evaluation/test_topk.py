"""The ranked lists: the order of the measures, without what the protocol removes."""

import numpy as np
import pytest

from d3still.evaluation import evaluate_distances, evaluate_ranking
from tests.evaluation.naive import naive_ranking


@pytest.mark.parametrize("topk", [1, 4, 30, 1000])
def test_lists_with_ties_junk_and_own_cameras_are_the_naive_ones(topk):
    rng = np.random.default_rng(topk)
    distances = rng.integers(0, 6, (25, 30))
    labels = [rng.integers(low, 4, count) for low, count in ((-1, 25), (-1, 30), (0, 25), (0, 30))]
    for exclude in (True, False):
        expected = naive_ranking((-distances).tolist(), *(label.tolist() for label in labels), exclude)
        lists = evaluate_distances(distances, *labels, exclude_same_camera=exclude, topk=topk).topk
        width = min(topk, (labels[1] != -1).sum())
        assert lists.indices.shape == lists.scores.shape == lists.hits.shape == (25, width)
        for query, ranked in enumerate(expected.ranked):
            ranked = ranked[:width]
            padding = [-1] * (width - len(ranked))
            assert lists.indices[query].tolist() == ranked + padding
            assert lists.scores[query, : len(ranked)].tolist() == distances[query, ranked].tolist()
            assert np.isnan(lists.scores[query, len(ranked) :]).all()
            assert lists.hits[query].tolist() == [*(labels[1][ranked] == labels[0][query]), *([False] * len(padding))]


def test_no_list_unless_asked_for():
    assert evaluate_distances([[0, 1]], [1], [1, 2], [0], [1, 1]).topk is None


def test_a_query_whose_gallery_is_all_from_its_own_camera_has_an_empty_list():
    lists = evaluate_ranking([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], [1, 1], [1], [0, 1], [0], topk=3).topk
    assert lists.indices.tolist() == [[-1], [0]] and lists.hits.tolist() == [[False], [True]]
    assert np.isnan(lists.scores[0, 0]) and lists.scores[1, 0] == 0


def test_unmatched_queries_have_lists_too():
    lists = evaluate_distances([[0, 1], [3, 2]], [1, 9], [1, 2], [0, 0], [1, 1], topk=2).topk
    assert lists.indices.tolist() == [[0, 1], [1, 0]] and lists.hits.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_lists_and_measures_agree_where_scores_tie(metric):
    rng = np.random.default_rng(0)
    query, gallery = (rng.integers(-2, 3, (count, 6)).astype(np.float32) for count in (50, 600))
    labels = [rng.integers(0, 8, count) for count in (50, 600, 50, 600)]
    result = evaluate_ranking(query, gallery, *labels, metric=metric, topk=600)
    np.testing.assert_array_equal(result.topk.hits.argmax(axis=1) + 1, result.first_hit)
    for hits, ap in zip(result.topk.hits, result.ap, strict=True):
        ranks = np.flatnonzero(hits) + 1
        assert ap == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks), abs=1e-14)


def test_equal_images_are_listed_by_their_place():
    lists = evaluate_ranking(
        np.full((1, 7), 0.3), np.full((9, 7), 0.3), [1], [1, 2] * 4 + [1], [0], [1] * 9, topk=9
    ).topk
    assert lists.indices.tolist() == [[1, 3, 5, 7, 0, 2, 4, 6, 8]]
