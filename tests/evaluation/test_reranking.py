"""k-reciprocal re-ranking: the published numbers, the dense way, and inputs at the edge."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.dense_reranking import dense_k_reciprocal_distances
from d3still.errors import UserError
from d3still.evaluation import evaluate_distances, k_reciprocal_distances, reranking

CONFORMANCE = Path(__file__).parents[1] / "conformance"


@pytest.fixture(scope="module")
def published():
    with np.load(CONFORMANCE / "retrieval.npz") as arrays:
        return dict(arrays)


def clusters(seed, num_queries=30, num_gallery=170, width=12, num_ids=12, noise=0.6):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((num_ids, width))
    ids = rng.integers(0, num_ids, num_queries), rng.integers(0, num_ids, num_gallery)
    return *(np.float32(centers[of] + noise * rng.standard_normal((len(of), width))) for of in ids), *ids


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (60, 10)])
def test_published_numbers(published, k1, k2, dtype):
    # To 1e-3, because the published code keeps one step in float16; exact arithmetic is 1e-4 away from it.
    sides = published["query_feat"].astype(dtype), published["gallery_feat"].astype(dtype)
    distances = k_reciprocal_distances(*sides, k1, k2, 0.3)
    assert distances.dtype == dtype and distances.shape == (60, 300)
    np.testing.assert_allclose(distances, published[f"rerank_{k1}_{k2}_0.3"], rtol=0, atol=1.5e-4)
    labels = (published[name] for name in ("query_pid", "gallery_pid", "query_cam", "gallery_cam"))
    numbers = json.loads((CONFORMANCE / "retrieval.json").read_text())["retrieval"][f"rerank_{k1}_{k2}_0.3"]
    result = evaluate_distances(distances, *labels)
    assert result.mAP == pytest.approx(numbers["mAP"], abs=1e-3)
    assert result.cmc[0] == pytest.approx(numbers["cmc1"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("k1", "k2", "weight"),
    [
        (20, 6, 0.3),
        (20, 1, 0.3),
        (1, 1, 0.5),
        (2, 3, 0.0),
        (5, 4, 1.0),
        (7, 199, 0.2),
        (199, 5, 0.3),
        (1000, 1000, 0.3),
    ],
)
def test_sparse_and_dense_agree(seed, k1, k2, weight):
    query, gallery, *_ = clusters(seed)
    expected = dense_k_reciprocal_distances(query, gallery, k1, k2, weight)
    np.testing.assert_allclose(k_reciprocal_distances(query, gallery, k1, k2, weight), expected, atol=2e-6)


def test_chunks_change_nothing(monkeypatch):
    query, gallery, *_ = clusters(3)
    whole = k_reciprocal_distances(query, gallery, 20, 6, 0.3)
    monkeypatch.setattr(reranking, "_BLOCK", 1000)
    monkeypatch.setattr(reranking, "_OVERLAP_ROWS", 7)
    monkeypatch.setattr(reranking, "_SHARED_ENTRIES", 50)
    np.testing.assert_allclose(k_reciprocal_distances(query, gallery, 20, 6, 0.3), whole, atol=1e-6)


def test_lambda_one_gives_the_original_order_and_lambda_the_mixture():
    query, gallery, *_ = clusters(4)
    original, jaccard, mixed = (k_reciprocal_distances(query, gallery, 20, 6, weight) for weight in (1, 0, 0.25))
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
    square = 2 - 2 * unit[0] @ np.concatenate(unit).T
    expected = square[:, len(query) :] / square.max(axis=1, keepdims=True)
    np.testing.assert_allclose(original, expected, atol=1e-6)
    np.testing.assert_allclose(mixed, 0.25 * original + 0.75 * jaccard, atol=1e-6)
    assert (jaccard >= -1e-6).all() and (jaccard <= 1 + 1e-6).all()


def test_it_helps_where_neighbours_agree():
    query, gallery, *ids = clusters(5, noise=1.2)
    labels = *ids, np.zeros(len(query)), np.ones(len(gallery))
    plain, better = (
        evaluate_distances(k_reciprocal_distances(query, gallery, 14, 4, weight), *labels) for weight in (1, 0.3)
    )
    assert better.mAP > plain.mAP + 0.02


def test_duplicates_are_each_others_nearest():
    query, gallery, *_ = clusters(6)
    gallery[10:20] = query[:10]
    distances = k_reciprocal_distances(query, gallery, 20, 6, 0.3)
    assert np.isfinite(distances).all() and (distances >= -1e-6).all()
    assert (distances[:10].argmin(axis=1) == np.arange(10, 20)).all()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_images_that_are_all_alike(value):
    distances = k_reciprocal_distances(np.full((3, 5), value), np.full((7, 5), value), 4, 2, 0.3)
    assert np.isfinite(distances).all()


def test_one_query_and_one_image():
    same = k_reciprocal_distances([[1.0, 0.0]], [[2.0, 0.0]], 60, 10, 0.3)
    np.testing.assert_allclose(same, [[0.0]], atol=1e-7)


def test_tensors_and_scale():
    query, gallery, *_ = clusters(7)
    expected = k_reciprocal_distances(query, gallery, 20, 6, 0.3)
    scaled = torch.from_numpy(query) * 8, torch.from_numpy(gallery) * 0.25
    np.testing.assert_array_equal(k_reciprocal_distances(*scaled, 20, 6, 0.3), expected)


def test_settings_for_speed_do_not_reach_the_neighbours():
    query, gallery, *_ = clusters(8, 100, 900, 64)
    expected = k_reciprocal_distances(query, gallery, 20, 6, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(k_reciprocal_distances(query, gallery, 20, 6, 0.3), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((0, 10, 0.3), "k1 must be a whole number of at least 1, not 0"),
        ((60, 0, 0.3), "k2 must be a whole number of at least 1, not 0"),
        ((60.0, 10, 0.3), "k1 must be a whole number"),
        ((60, 10, 1.5), "lambda must lie between 0 and 1, not 1.5"),
        ((60, 10, float("nan")), "lambda must lie between 0 and 1"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(UserError, match=rf"TEST\.RE_RANKING_PARAMETER: {message}"):
        k_reciprocal_distances(np.ones((2, 3)), np.ones((4, 3)), *parameters)


def test_features_that_cannot_be_ranked():
    with pytest.raises(UserError, match="gallery features 4"):
        k_reciprocal_distances(np.ones((2, 3)), np.ones((4, 4)), 2, 2, 0.3)
    with pytest.raises(UserError, match=r"1 of 2 query features are NaN or infinite \(those of images 1,"):
        k_reciprocal_distances([[0.0], [np.nan]], np.ones((4, 1)), 2, 2, 0.3)
    with pytest.raises(UserError, match="nothing to re-rank: 2 queries, 0 gallery images"):
        k_reciprocal_distances(np.ones((2, 3)), np.ones((0, 3)), 2, 2, 0.3)


# --- memory ------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(reranking, "available_memory", lambda: 100 << 20)
    monkeypatch.setattr(reranking, "_nearest", lambda *_: pytest.fail("it started"))
    query, gallery = np.ones((1678, 4), np.float32), np.ones((11579, 4), np.float32)
    with pytest.raises(
        UserError, match=r"1678 queries and 11579 gallery images with k1 = 60 needs about 0\.\d GiB.*0\.1 GiB are free"
    ):
        k_reciprocal_distances(query, gallery, 60, 10, 0.3)


def test_where_the_system_does_not_tell_it_goes_ahead(monkeypatch):
    monkeypatch.setattr(reranking, "available_memory", lambda: None)
    assert k_reciprocal_distances(np.eye(3), np.eye(3), 2, 1, 0.3).shape == (3, 3)


def test_the_estimate_grows_with_the_images_not_with_their_square():
    veri = reranking.memory_needed(1678, 11579, 512, 60, 10)
    assert veri < 2 << 30
    small, large = (reranking.memory_needed(1, count, 512, 60, 10) for count in (100_000, 200_000))
    assert large < 2.01 * small
