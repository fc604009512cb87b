"""The fast ways rank as double precision does, whatever the features look like and however they are cut up."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from d3still.evaluation import evaluate_distances, evaluate_ranking, ranks
from d3still.evaluation.labels import match
from d3still.evaluation.similarity import CosineSimilarity, EuclideanSimilarity, make_similarity
from d3still.evaluation.topk import ranked_lists
from tests.evaluation.naive import naive_ranking

# --- ties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 64, 512])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e-3])
def test_constant_features_score_as_badly_as_can_be(metric, width, value):
    # 5 of 301 gallery images are right and all tie: they rank last, wherever they stand.
    for ids in ([1] * 5 + [2] * 296, [2] * 296 + [1] * 5, [2] * 100 + [1] * 5 + [2] * 196):
        features = np.full((301, width), value, dtype=np.float32)
        result = evaluate_ranking(features[:1], features, [1], ids, [0], [1] * 301, metric=metric)
        assert result.ap[0] == pytest.approx(sum(n / (296 + n) for n in range(1, 6)) / 5, abs=1e-15)
        assert result.first_hit[0] == 297 and result.cmc[-1] == 0.0


def test_a_miss_that_ties_with_a_hit_ranks_before_it():
    result = evaluate_distances([[1, 1, 1, 0]], [1], [1, 2, 1, 1], [0], [1] * 4, topk=4)
    assert result.topk.hits.tolist() == [[True, False, True, True]]
    assert result.topk.indices.tolist() == [[3, 1, 0, 2]]
    assert result.ap[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_equal_cosines_tie_although_they_round_differently():
    # (1, 1) is equally far from (3, 4), (4, 3), (30, 40) and (0.3, 0.4); 0.3 and 0.4 are no binary fractions.
    gallery = np.array([[3, 4], [4, 3], [30, 40], [0.4, 0.3], [0.3, 0.4]])
    for hit in range(5):
        ids = [1 if place == hit else 2 for place in range(5)]
        for dtype in (np.float64, np.float32):
            result = evaluate_ranking(np.ones((1, 2), dtype), gallery.astype(np.float64), [1], ids, [0], [1] * 5)
            assert result.first_hit[0] == 5


def test_binary_codes_tie_by_their_hamming_distance():
    rng = np.random.default_rng(0)
    query, gallery = (rng.integers(0, 2, (count, 48)) * 2 - 1 for count in (30, 800))
    ids = rng.integers(0, 5, 30), rng.integers(0, 5, 800)
    expected = naive_ranking((query @ gallery.T).tolist(), *map(list, ids), [0] * 30, [1] * 800)
    for metric in ("cosine", "euclidean"):
        result = evaluate_ranking(np.int8(query), np.int8(gallery), *ids, [0] * 30, [1] * 800, metric=metric)
        np.testing.assert_allclose(result.ap, expected.ap, atol=1e-14)
        assert result.first_hit.tolist() == expected.first_hit


def test_differences_below_float32_decide():
    # The cosines differ by 1e-9, which no float32 product can tell.
    angle = np.array([0.5 + 1e-9, 0.5, 0.5 + 2e-9])
    gallery = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    result = evaluate_ranking([[1.0, 0.0]], gallery, [1], [1, 2, 2], [0], [1] * 3)
    assert result.first_hit[0] == 2


# --- the fast way against sorting in double precision ----------------------------------------------------

FAMILIES = {
    "normal": lambda rng, shape, centers, ids: rng.standard_normal(shape),
    "clustered": lambda rng, shape, centers, ids: centers[ids] + 1.5 * rng.standard_normal(shape),
    "rectified": lambda rng, shape, centers, ids: np.maximum(rng.standard_normal(shape), 0),
    "zeros": lambda rng, shape, centers, ids: np.zeros(shape),
    "one direction": lambda rng, shape, centers, ids: np.ones(shape) * (0.5 + rng.random((shape[0], 1))),
    "binary": lambda rng, shape, centers, ids: rng.integers(0, 2, shape),
    "small integers": lambda rng, shape, centers, ids: rng.integers(-2, 3, shape),
    "nearly collapsed": lambda rng, shape, centers, ids: 1 + 1e-4 * rng.standard_normal(shape),
    "collapsed": lambda rng, shape, centers, ids: 1 + 1e-7 * rng.standard_normal(shape),
    "duplicates": lambda rng, shape, centers, ids: centers[rng.integers(0, len(centers), shape[0])],
    "outliers": lambda rng, shape, centers, ids: rng.standard_normal(shape) * 1e6 ** (rng.random((shape[0], 1)) < 0.03),
    "huge": lambda rng, shape, centers, ids: 1e25 * rng.standard_normal(shape),
    "tiny": lambda rng, shape, centers, ids: 1e-25 * rng.standard_normal(shape),
}


@pytest.mark.parametrize("sizes", [(40, 300, 24, 30), (1, 2, 3, 1), (60, 2000, 64, 40), (100, 500, 2, 3)], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_product_and_sorting_agree(family, metric, sizes):
    num_queries, num_gallery, width, num_ids = sizes
    rng = np.random.default_rng(sum(sizes))
    ids = rng.integers(0, num_ids, num_queries), rng.integers(-1, num_ids, num_gallery)
    ids[1][0] = ids[0][0]
    cams = rng.integers(0, 5, num_queries), np.append(9, rng.integers(0, 5, num_gallery - 1))
    centers = rng.standard_normal((num_ids, width))
    sides = [np.float32(FAMILIES[family](rng, (len(of), width), centers, of)) for of in ids]
    matches = match(*ids, *cams, (num_queries, num_gallery), True)
    similarity, queries = make_similarity(*sides, metric), np.flatnonzero(matches.num_hits)
    fast = ranks.rank_by_product(similarity, matches, queries)
    sure = ranks.rank_by_sorting(similarity, matches, queries)
    np.testing.assert_array_equal(fast.first_hit, sure.first_hit)
    np.testing.assert_allclose(fast.ap, sure.ap, rtol=0, atol=1e-14)
    np.testing.assert_allclose(fast.inp, sure.inp, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [CosineSimilarity, EuclideanSimilarity])
def test_tensors_score_as_arrays_do(kind, dtype):
    # What a CUDA device runs, here on tensors of the CPU: scores, ranks and lists.
    rng = np.random.default_rng(3)
    sides = [torch.from_numpy(rng.integers(-3, 4, (count, 6))).to(dtype) for count in (30, 400)]
    labels = [rng.integers(0, 6, count) for count in (30, 400, 30, 400)]
    matches = match(*labels, (30, 400), True)
    queries = np.flatnonzero(matches.num_hits)
    arrays, tensors = kind(*(side.numpy() for side in sides)), kind(*sides)
    assert tensors.on_cuda and not arrays.on_cuda
    for single in (np.float32, np.float64):
        rows = tensors.gallery_rows(matches.gallery_order, single)
        np.testing.assert_allclose(rows, arrays.gallery_rows(matches.gallery_order, single), rtol=1e-6, atol=1e-7)
    found, expected = (ranks.rank_by_sorting(of, matches, queries) for of in (tensors, arrays))
    np.testing.assert_array_equal(found.ap, expected.ap)
    lists = [ranked_lists(of, matches, 20) for of in (tensors, arrays)]
    np.testing.assert_array_equal(lists[0].indices, lists[1].indices)
    np.testing.assert_allclose(lists[0].scores, lists[1].scores, atol=1e-14)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_against_the_naive_evaluator(metric):
    rng = np.random.default_rng(7)
    query, gallery = rng.standard_normal((40, 12)), rng.standard_normal((500, 12))
    labels = [rng.integers(low, 8, count) for low, count in ((-1, 40), (-1, 500), (0, 40), (0, 500))]
    if metric == "cosine":
        unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
        scores = unit[0] @ unit[1].T
    else:
        scores = -((query[:, None] - gallery[None]) ** 2).sum(2)
    for exclude in (True, False):
        expected = naive_ranking(scores.tolist(), *(label.tolist() for label in labels), exclude)
        result = evaluate_ranking(
            query,
            gallery,
            *labels,
            metric=metric,
            exclude_same_camera=exclude,
            topk=20,
        )
        np.testing.assert_allclose(result.ap, expected.ap, atol=1e-14)
        np.testing.assert_allclose(result.inp, expected.inp, atol=1e-14)
        assert result.first_hit.tolist() == expected.first_hit
        assert result.topk.indices.tolist() == [ranked[:20] for ranked in expected.ranked]


# --- chunks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chunks_change_nothing(monkeypatch, metric):
    rng = np.random.default_rng(4)
    query, gallery = (np.float32(rng.integers(-3, 4, (count, 8))) for count in (70, 400))
    labels = [rng.integers(0, 6, count) for count in (70, 400, 70, 400)]
    whole = evaluate_ranking(query, gallery, *labels, metric=metric, topk=7)
    for block, group in ((1, 1), (2800, 900), (400 * 64, 400 * 7)):
        monkeypatch.setattr(ranks, "_BLOCK", block)
        monkeypatch.setattr(ranks, "_GROUP", group)
        monkeypatch.setattr(ranks, "_DOUBLE_BLOCK", block)
        monkeypatch.setattr("d3still.evaluation.topk._BLOCK", block)
        monkeypatch.setattr("d3still.evaluation.similarity._ROWS_AT_ONCE", 33)
        monkeypatch.setattr("d3still.evaluation.similarity._PAIRS_AT_ONCE", 5)
        cut = evaluate_ranking(query, gallery, *labels, metric=metric, topk=7)
        for name in ("ap", "inp", "first_hit"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
        np.testing.assert_array_equal(cut.topk.indices, whole.topk.indices)
        np.testing.assert_array_equal(cut.topk.hits, whole.topk.hits)


def test_threads_change_nothing():
    rng = np.random.default_rng(5)
    query, gallery = (rng.standard_normal((count, 32)).astype(np.float32) for count in (300, 6000))
    labels = [rng.integers(0, 40, count) for count in (300, 6000, 300, 6000)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(evaluate_ranking(query, gallery, *labels))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].ap, found[1].ap)


MEMORY = """
import sys
import numpy as np
from d3still.evaluation import evaluate_ranking

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

rng = np.random.default_rng(0)
query, gallery = (rng.standard_normal((count, 16), dtype=np.float32) for count in (6000, 40000))
labels = [rng.integers(0, 800, count) for count in (6000, 40000, 6000, 40000)]
evaluate_ranking(query[:1], query[:1], [1], [1], [0], [1])  # what the libraries themselves load
before = peak()
evaluate_ranking(query, gallery, *labels)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_full_matrix_never_exists():
    # It would take 915 MiB; one block of scores takes 128.
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 400
