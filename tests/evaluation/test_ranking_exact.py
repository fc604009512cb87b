"""The product ranks as double precision does, whatever the features look like and however they are cut up."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from d3still.evaluation import evaluate_distances, evaluate_ranking, ranks
from d3still.evaluation.arrays import comparable
from d3still.evaluation.labels import match
from d3still.evaluation.scores import Distances, Similarity
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


# --- what the product cannot decide ----------------------------------------------------

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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_errs_by_less_than_its_bound(family, metric, dtype):
    # Half the bound, which is that of a difference; in float32 and, as for CUDA tensors, in double precision.
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 30, 40), rng.integers(0, 30, 300)
    centers = rng.standard_normal((30, 24))
    sides = [dtype(FAMILIES[family](rng, (len(of), 24), centers, of)) for of in ids]
    scores = Similarity(*comparable(*sides), metric, np.arange(300))
    queries, columns = (index.ravel() for index in np.indices((40, 300)))
    found = np.empty((40, 300), np.float32)
    scores.product(np.arange(40), found)
    meant = scores.as_product(queries, scores.exact(queries, columns))
    _, error = scores.bands(queries, columns, found.ravel().astype(float))
    assert (np.abs(found.ravel() - meant) <= error / 2).all()


def adversarial(seed, dtype):
    """Features with a common part, lengths from 1e-3 to 1e3 and near and exact duplicates, and their identities."""
    rng = np.random.default_rng(seed)
    width, common = rng.choice([8, 64, 256]), rng.choice([0, 1, 30, 300])
    ids = rng.integers(0, 12, 6), rng.integers(0, 12, 120)
    centers, offset = rng.standard_normal((12, width)), common * rng.standard_normal(width)
    query, gallery = (centers[of] + 0.7 * rng.standard_normal((len(of), width)) + offset for of in ids)
    source, target = rng.permutation(120)[:60].reshape(2, 30)
    gallery[target] = gallery[source] * (1 + 10 ** rng.uniform(-6, -4) * rng.standard_normal((30, width)))
    gallery[target[:10]] = gallery[source[:10]]
    if seed % 2:
        lengths = [10 ** rng.uniform(-3, 3, (len(of), 1)) for of in ids]
        lengths[1][target[:10]] = lengths[1][source[:10]]
        query, gallery = query * lengths[0], gallery * lengths[1]
    return dtype(query), dtype(gallery), *ids


def double_scores(query, gallery, metric, dims):
    """Scores in double precision, summed in a given order of the dimensions."""
    query, gallery = query.astype(float)[:, dims], gallery.astype(float)[:, dims]
    if metric == "euclidean":
        return -np.cumsum((query[:, None] - gallery[None]) ** 2, axis=2)[:, :, -1]
    query, gallery = (side / np.sqrt(np.cumsum(side**2, axis=1)[:, -1:]) for side in (query, gallery))
    return np.cumsum(query[:, None] * gallery[None], axis=2)[:, :, -1]


def adversarial_case(seed, dtype, metric, convert=np.asarray):
    """Rankings in double precision, by two orders of summation, and the one of `evaluate_ranking`."""
    query, gallery, *ids = adversarial(seed, dtype)
    dims = np.arange(query.shape[1])
    labels = *ids, np.zeros(6, int), np.ones(120, int)
    expected = [
        naive_ranking(double_scores(query, gallery, metric, order).tolist(), *(label.tolist() for label in labels))
        for order in (dims, dims[::-1])
    ]
    return expected, evaluate_ranking(convert(query), convert(gallery), *labels, metric=metric, topk=120)


def check_adversarial(convert):
    # "Double precision's order" has a meaning only where it does not hang on the order of summation.
    clear = 0
    for seed in range(28):
        for dtype in (np.float32, np.float64):
            for metric in ("cosine", "euclidean"):
                (one, other), found = adversarial_case(seed, dtype, metric, convert)
                if one.ranked != other.ranked:
                    continue
                clear += 1
                assert found.topk.indices.tolist() == one.ranked, (seed, dtype, metric)
                assert found.first_hit.tolist() == one.first_hit
                np.testing.assert_allclose(found.ap, one.ap, atol=1e-14)
    assert clear >= 100


def test_adversarial_features_rank_as_double_precision_does():
    check_adversarial(np.asarray)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adversarial_cuda_tensors_rank_as_double_precision_does():
    check_adversarial(lambda side: torch.from_numpy(side).cuda())


class WorstProduct(Distances):
    """A product that errs by as much as its bands allow, up or down as chance has it; the bands of hits differ."""

    def __init__(self, distances, columns, error):
        super().__init__(distances, columns)
        signs = np.random.default_rng(1).choice([-1, 1], distances.shape)
        self.product_of = -distances / self._unit + 0.999 * error / 2 * signs
        self.error = error * np.random.default_rng(2).choice([1, 4], distances.shape)

    def product(self, queries, out):
        out[:] = self.product_of[np.ix_(queries, self.columns)]

    def bands(self, queries, columns, level):
        return np.zeros(len(level)), self.error[queries, self.columns[columns]]


@pytest.mark.parametrize("error", [1e-6, 1e-3, 0.03, 0.5, 3])
def test_whatever_a_product_makes_of_its_bands_the_exact_scores_decide(error):
    """Independent: the naive ranking of the distances themselves."""
    rng = np.random.default_rng(0)
    distances = rng.random((40, 300))
    ids, cams = (rng.integers(0, 6, 40), rng.integers(0, 6, 300)), (rng.integers(0, 3, 40), rng.integers(0, 3, 300))
    expected = naive_ranking((-distances).tolist(), *(side.tolist() for side in (*ids, *cams)))
    matches = match(*ids, *cams, (40, 300), True)
    ap, _, first = ranks.rank(WorstProduct(distances, matches.gallery_order, error), matches)
    np.testing.assert_allclose(ap, expected.ap, atol=1e-14)
    assert first.tolist() == expected.first_hit


def test_features_that_a_float32_product_cannot_tell_apart_take_longer_but_rank_the_same():
    # Every score ties with many in float32: noise of 1e-7 on three images that all are copies of.
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 8, 30), rng.integers(0, 8, 400)
    base = rng.standard_normal((3, 16))
    query, gallery = (base[rng.integers(0, 3, len(of))] + 1e-7 * rng.standard_normal((len(of), 16)) for of in ids)
    expected = naive_ranking(
        double_scores(query, gallery, "euclidean", np.arange(16)).tolist(), *map(list, ids), [0] * 30, [1] * 400
    )
    found = evaluate_ranking(query, gallery, *ids, [0] * 30, [1] * 400, metric="euclidean", topk=400)
    assert found.topk.indices.tolist() == expected.ranked and found.first_hit.tolist() == expected.first_hit


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-30, 1e200, 1e300])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_of_any_size_are_no_vectors_of_zeros(metric, scale):
    # Of (3, 4), (4, 3) is nearer than (0, 5), at every scale; squares of these numbers underflow or overflow.
    query, gallery = scale * np.array([[3.0, 4.0]]), scale * np.array([[0.0, 5.0], [4.0, 3.0]])
    result = evaluate_ranking(query, gallery, [1], [2, 1], [0], [1, 1], metric=metric, topk=2)
    assert result.topk.indices.tolist() == [[1, 0]]
    shown = [0.96, 0.8] if metric == "cosine" else [2**0.5 * scale, 10**0.5 * scale]
    np.testing.assert_allclose(result.topk.scores[0], shown, rtol=1e-3 if scale < 1e-300 else 1e-14)


def test_a_vector_of_zeros_has_cosine_0_with_everything():
    result = evaluate_ranking(
        [[1.0, 0.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 1.0]],
        [1, 1],
        [1, 2, 2, 2],
        [0, 0],
        [1] * 4,
        topk=4,
    )
    assert result.topk.indices.tolist() == [[2, 1, 0, 3], [1, 2, 3, 0]]
    np.testing.assert_allclose(result.topk.scores, [[0.5**0.5, 0, 0, -(0.5**0.5)], [0] * 4], atol=1e-15)


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
        monkeypatch.setattr("d3still.evaluation.scores._ROWS_AT_ONCE", 33)
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
