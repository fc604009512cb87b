"""Properties that every ranking has, and agreement with other people's evaluators, on random cases."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score

from d3still.evaluation import evaluate_distances, evaluate_ranking
from tests.evaluation.naive import naive_ranking

FEW = settings(max_examples=60, deadline=None)
METRICS = st.sampled_from(["cosine", "euclidean"])


@st.composite
def cases(draw, most=12):
    """(query, gallery, query ids, gallery ids, query cams, gallery cams); whole numbers, so that ties abound."""
    num_queries, num_gallery, width = draw(st.integers(1, 5)), draw(st.integers(1, most)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    features = [
        draw(arrays(dtype, (count, width), elements=st.integers(-3, 3).map(float)))
        for count in (num_queries, num_gallery)
    ]
    ids = [draw(arrays(np.int64, count, elements=st.integers(-1, 3))) for count in (num_queries, num_gallery)]
    cams = [draw(arrays(np.int64, count, elements=st.integers(0, 2))) for count in (num_queries, num_gallery)]
    right = (ids[0][:, None] == ids[1]) & (ids[0][:, None] != -1) & (cams[0][:, None] != cams[1])
    assume(right.any())
    return *features, *ids, *cams


@FEW
@given(cases(), METRICS, st.randoms(use_true_random=False))
def test_permuting_the_gallery_changes_nothing(case, metric, random):
    query, gallery, query_ids, gallery_ids, query_cams, gallery_cams = case
    order = np.array(random.sample(range(len(gallery)), len(gallery)))
    result = evaluate_ranking(*case, metric=metric, topk=5)
    moved = evaluate_ranking(
        query, gallery[order], query_ids, gallery_ids[order], query_cams, gallery_cams[order], metric=metric, topk=5
    )
    np.testing.assert_array_equal(moved.ap, result.ap)
    np.testing.assert_array_equal(moved.first_hit, result.first_hit)
    np.testing.assert_array_equal(moved.topk.hits, result.topk.hits)
    assert moved.cmc == result.cmc


@FEW
@given(cases(), METRICS, st.randoms(use_true_random=False))
def test_permuting_the_queries_permutes_their_measures(case, metric, random):
    query, gallery, query_ids, gallery_ids, query_cams, gallery_cams = case
    order = np.array(random.sample(range(len(query)), len(query)))
    moved = evaluate_ranking(
        query[order], gallery, query_ids[order], gallery_ids, query_cams[order], gallery_cams, metric=metric
    )
    np.testing.assert_array_equal(moved.ap, evaluate_ranking(*case, metric=metric).ap[order])


@FEW
@given(cases())
def test_squared_distances_of_whole_numbers_rank_as_the_naive_evaluator_says(case):
    query, gallery, *labels = case
    scores = -((query[:, None] - gallery[None]) ** 2).sum(2)
    expected = naive_ranking(scores.tolist(), *(label.tolist() for label in labels))
    for result in (evaluate_ranking(*case, metric="euclidean", topk=99), evaluate_distances(-scores, *labels, topk=99)):
        np.testing.assert_allclose(result.ap, expected.ap, atol=1e-15)
        np.testing.assert_allclose(result.inp, expected.inp, atol=1e-15)
        assert result.first_hit.tolist() == expected.first_hit
        assert [[image for image in ranked if image >= 0] for ranked in result.topk.indices] == expected.ranked


@FEW
@given(cases(), METRICS)
def test_a_worst_ranked_distractor_never_raises_ap(case, metric):
    query, gallery, query_ids, gallery_ids, query_cams, gallery_cams = case
    query, query_ids, query_cams = query[:1], query_ids[:1], query_cams[:1]
    right = (gallery_ids == query_ids) & (gallery_cams != query_cams) & (query_ids != -1)
    assume(right.any())
    labels = query_ids, np.append(gallery_ids, 77), query_cams, np.append(gallery_cams, 0)
    far = -query if metric == "cosine" else query + 1e3
    before = evaluate_ranking(query, gallery, query_ids, gallery_ids, query_cams, gallery_cams, metric=metric)
    after = evaluate_ranking(query, np.vstack([gallery, far]), *labels, metric=metric)
    assert after.ap[0] <= before.ap[0] and after.first_hit[0] >= before.first_hit[0]


@FEW
@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_a_perfect_ranking_has_ap_one(hits, misses, seed):
    rng = np.random.default_rng(seed)
    distances = np.append(rng.random(hits), 2 + rng.random(misses))
    ids = np.append(np.full(hits, 3), rng.integers(4, 9, misses))
    order = rng.permutation(hits + misses)
    result = evaluate_distances(distances[None, order], [3], ids[order], [0], [1] * len(ids))
    assert result.ap[0] == result.inp[0] == result.cmc[0] == 1.0


@FEW
@given(cases(), METRICS)
def test_measures_keep_their_bounds(case, metric):
    result = evaluate_ranking(*case, metric=metric)
    valid = result.first_hit > 0
    assert result.num_valid == valid.sum() and result.num_valid + result.num_unmatched == len(case[0])
    assert ((result.ap[valid] > 0) & (result.ap[valid] <= 1) & (result.inp[valid] <= 1)).all()
    assert (np.diff(result.cmc) >= 0).all() and len(result.cmc) == 50 and result.cmc[-1] == 1.0
    assert result.mAP == pytest.approx(result.ap[valid].mean())


@st.composite
def untied(draw):
    """Random features without cameras or junk, every query with a match: what other evaluators know."""
    seed, num_ids = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    gallery_ids = np.append(np.arange(num_ids), rng.integers(0, num_ids, draw(st.integers(0, 60))))
    query_ids = rng.integers(0, num_ids, draw(st.integers(1, 10)))
    features = [rng.standard_normal((len(of), 8)).astype(np.float32) for of in (query_ids, gallery_ids)]
    return *features, query_ids, gallery_ids


@FEW
@given(untied())
def test_average_precision_is_scikit_learns(case):
    # scikit-learn sums precision over the steps of recall: the rectangular AP, where nothing ties.
    query, gallery, query_ids, gallery_ids = case
    result = evaluate_ranking(*case, np.zeros(len(query)), np.ones(len(gallery)))
    unit = [side.astype(float) / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
    for ap, scores, identity in zip(result.ap, unit[0] @ unit[1].T, query_ids, strict=True):
        assert ap == pytest.approx(average_precision_score(gallery_ids == identity, scores), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(untied())
def test_map_and_precision_at_one_are_pytorch_metric_learnings(case):
    query, gallery, query_ids, gallery_ids = case
    calculator = AccuracyCalculator(
        include=("mean_average_precision", "precision_at_1"),
        k=len(gallery),  # the whole ranking, so that its AP is over all matches
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(*(torch.from_numpy(array) for array in (query, query_ids, gallery, gallery_ids)))
    result = evaluate_ranking(*case, np.zeros(len(query)), np.ones(len(gallery)))
    assert result.mAP == pytest.approx(theirs["mean_average_precision"], abs=1e-6)  # theirs is float32
    assert result.cmc[0] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
