"""The ranking protocol on the published numbers and on cases worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from d3still.errors import UserError
from d3still.evaluation import evaluate_distances, evaluate_ranking

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def distances_with_hits_at(ranks, length):
    """One query whose hits stand at these ranks: its distances, and the arguments that go with them."""
    ids = [1 if rank in ranks else 2 for rank in range(1, length + 1)]
    return [list(range(length))], [1], ids, [0], [1] * length


# --- the published numbers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    numbers = json.loads((CONFORMANCE / "retrieval.json").read_text())["retrieval"]
    with np.load(CONFORMANCE / "retrieval.npz") as arrays:
        return numbers, dict(arrays)


@pytest.mark.parametrize("convert", [np.asarray, np.float32, torch.from_numpy], ids=["float64", "float32", "tensor"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_published_numbers(published, metric, convert):
    numbers, arrays = published
    result = evaluate_ranking(
        *(convert(arrays[name]) for name in ("query_feat", "gallery_feat")),
        *(arrays[name] for name in ("query_pid", "gallery_pid", "query_cam", "gallery_cam")),
        metric=metric,
    )
    valid = result.first_hit > 0
    assert result.num_valid == numbers[metric]["valid_queries"] == valid.sum()
    assert result.num_unmatched == 2
    np.testing.assert_allclose(result.ap[valid], arrays[f"{metric}__ap"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(result.inp[valid], arrays[f"{metric}__inp"], rtol=0, atol=1e-14)
    assert np.isnan(result.ap[~valid]).all() and np.isnan(result.inp[~valid]).all()
    assert result.mAP == pytest.approx(numbers[metric]["mAP"], abs=1e-14)
    assert result.mINP == pytest.approx(numbers[metric]["mINP"], abs=1e-14)
    assert isinstance(result.cmc, list) and len(result.cmc) == 50
    for rank, value in numbers[metric]["cmc"].items():  # stored as float32
        assert result.cmc[int(rank) - 1] == pytest.approx(value, abs=1e-7)


# --- conventions, worked by hand ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "ap", "inp"),
    [
        ({1, 2, 4, 7}, (1 + 1 + 3 / 4 + 4 / 7) / 4, 4 / 7),  # 0.830357, 0.571429
        ({1, 3}, (1 + 2 / 3) / 2, 2 / 3),  # 0.833333
        ({2}, 1 / 2, 1 / 2),
        ({2, 5}, (1 / 2 + 2 / 5) / 2, 2 / 5),  # 0.45, 0.4
    ],
)
def test_average_precision_is_rectangular(ranks, ap, inp):
    result = evaluate_distances(*distances_with_hits_at(ranks, 8))
    assert result.ap[0] == pytest.approx(ap, abs=1e-15) and result.mAP == pytest.approx(ap, abs=1e-15)
    assert result.inp[0] == pytest.approx(inp, abs=1e-15) and result.mINP == pytest.approx(inp, abs=1e-15)
    assert result.first_hit[0] == min(ranks)


def test_a_query_without_match_is_left_out_and_counted():
    result = evaluate_distances([[0, 1], [0, 1]], [1, 9], [1, 2], [0, 0], [1, 1])
    assert (result.mAP, result.mINP, result.cmc[0]) == (1.0, 1.0, 1.0)
    assert (result.num_valid, result.num_unmatched) == (1, 1)
    assert result.first_hit.tolist() == [1, 0] and np.isnan(result.ap[1]) and np.isnan(result.inp[1])


def test_the_query_itself_in_the_gallery_is_removed():
    # CUB, SOP: query and gallery are one set and each file is its own camera. The others rank hit, miss, hit.
    features = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    ids, cams = [1, 1, 2, 1], [0, 1, 2, 3]
    result = evaluate_ranking(features[:1], features, ids[:1], ids, cams[:1], cams)
    assert result.ap[0] == pytest.approx((1 + 2 / 3) / 2)
    kept = evaluate_ranking(features[:1], features, ids[:1], ids, cams[:1], cams, exclude_same_camera=False)
    assert kept.ap[0] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_same_camera_rule_needs_the_same_identity_too():
    # Of the query's camera: the other identity stays and ranks first.
    result = evaluate_distances([[0, 1, 2]], [1], [1, 2, 1], [5], [5, 5, 6])
    assert result.ap[0] == 0.5


def test_only_matches_from_the_own_camera_is_an_error_that_names_the_rule():
    arguments = [[0.0, 1.0]], [1], [1, 2], [0], [0, 0]
    with pytest.raises(UserError, match=r"same-camera rule.*TEST\.EXCLUDE_SAME_CAMERA: False"):
        evaluate_distances(*arguments)
    assert evaluate_distances(*arguments, exclude_same_camera=False).mAP == 1.0


def test_no_shared_identity_is_an_error_that_names_identities():
    with pytest.raises(UserError, match=r"no query identity occurs in the gallery \(query identities 1, 7"):
        evaluate_distances([[0.0], [0.0]], [7, 1], [3], [0, 0], [1])


def test_junk_counts_neither_as_hit_nor_as_miss():
    # Junk ranks first and second; without it the hit is first.
    result = evaluate_distances([[0, 1, 2, 3]], [1], [-1, -1, 1, 2], [0], [1, 1, 1, 1], topk=4)
    assert result.ap[0] == 1.0 and result.first_hit[0] == 1
    assert result.topk.indices.tolist() == [[2, 3]]


def test_a_junk_query_is_unmatched():
    result = evaluate_distances([[0, 1], [0, 1]], [-1, 2], [-1, 2], [0, 0], [1, 1])
    assert (result.num_valid, result.num_unmatched, result.mAP) == (1, 1, 1.0)


@pytest.mark.parametrize("identity", [0, -2, 10**12])
def test_no_other_identity_is_special(identity):
    result = evaluate_distances([[0, 1, 2]], [identity], [5, identity, 6], [0], [1, 1, 1])
    assert result.ap[0] == 0.5


def test_the_curve_is_padded_beyond_the_gallery():
    result = evaluate_distances([[0, 1], [1, 0]], [1, 1], [1, 2], [0, 0], [1, 1], max_rank=7)
    assert result.cmc == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_the_curve_stops_at_max_rank():
    assert evaluate_distances(*distances_with_hits_at({3}, 5), max_rank=2).cmc == [0.0, 0.0]


def test_summary_is_in_percent():
    result = evaluate_distances(*distances_with_hits_at({2, 5}, 9), max_rank=8)
    assert result.summary() == pytest.approx({"mAP": 45, "mINP": 40, "R1": 0, "R5": 100, "R10": 100})


# --- metrics -----------------------------------------------------------------------------------------


def test_cosine_normalises_and_euclidean_does_not():
    query, gallery = [[1.0, 0.0]], [[10.0, 10.0], [1.0, 0.0], [3.0, 0.0]]
    cosine = evaluate_ranking(query, gallery, [1], [2, 1, 1], [0], [1, 1, 1], topk=3)
    assert cosine.ap[0] == 1.0 and set(cosine.topk.indices[0, :2]) == {1, 2}
    np.testing.assert_allclose(cosine.topk.scores[0], [1, 1, 0.5**0.5], atol=1e-15)
    euclidean = evaluate_ranking(query, gallery, [1], [2, 1, 1], [0], [1, 1, 1], metric="euclidean", topk=3)
    assert euclidean.topk.indices.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(euclidean.topk.scores[0], [0, 2, 181**0.5], atol=1e-12)


def test_distance_of_identical_vectors_is_finite_and_zero():
    # Expanding the square of long float32 vectors gives slightly negative squares, whose roots are NaN.
    features = 10 * np.random.default_rng(0).standard_normal((8, 2048)).astype(np.float32)
    result = evaluate_ranking(features, features, range(8), range(8), [0] * 8, [1] * 8, metric="euclidean", topk=8)
    assert np.isfinite(result.topk.scores).all() and (result.topk.scores >= 0).all()
    assert (result.topk.indices[:, 0] == np.arange(8)).all() and (result.topk.scores[:, 0] == 0).all()
    assert result.mAP == 1.0


def test_a_common_offset_or_an_outlier_changes_no_euclidean_ranking():
    rng = np.random.default_rng(1)
    query, gallery = rng.standard_normal((20, 16)), rng.standard_normal((400, 16))
    labels = rng.integers(0, 5, 20), rng.integers(0, 5, 400), np.zeros(20, int), np.ones(400, int)
    expected = evaluate_ranking(query, gallery, *labels, metric="euclidean")
    moved = evaluate_ranking(query + 1e4, gallery + 1e4, *labels, metric="euclidean")
    np.testing.assert_allclose(moved.ap, expected.ap, atol=1e-12)
    gallery_ids = np.append(labels[1], 99)
    far = np.vstack([gallery, np.full(16, 1e7)])
    result = evaluate_ranking(query, far, labels[0], gallery_ids, labels[2], np.ones(401, int), metric="euclidean")
    np.testing.assert_allclose(result.ap, expected.ap, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scale_changes_nothing(metric, scale):
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((10, 8)), rng.standard_normal((200, 8))
    labels = rng.integers(0, 3, 10), rng.integers(0, 3, 200), np.zeros(10, int), np.ones(200, int)
    scaled = [np.float32(side * scale) for side in (query, gallery)]
    expected = evaluate_ranking(query, gallery, *labels, metric=metric)
    np.testing.assert_allclose(evaluate_ranking(*scaled, *labels, metric=metric).ap, expected.ap, atol=1e-4)


# --- kinds of input ----------------------------------------------------------------------------------


def sample(num_queries=12, num_gallery=150, width=16, seed=3):
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((count, width)).astype(np.float32) for count in (num_queries, num_gallery)]
    ids = [rng.integers(0, 6, count) for count in (num_queries, num_gallery)]
    cams = [rng.integers(0, 3, count) for count in (num_queries, num_gallery)]
    return *features, *ids, *cams


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_as_float32(dtype):
    query, gallery, *labels = sample()
    half = [torch.from_numpy(side).to(dtype) for side in (query, gallery)]
    expected = evaluate_ranking(*(side.float() for side in half), *labels)
    np.testing.assert_array_equal(evaluate_ranking(*half, *labels).ap, expected.ap)


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array.tolist(),
        lambda array: torch.from_numpy(array),
        lambda array: np.asfortranarray(array),
        lambda array: array[::-1].copy()[::-1],  # negative strides
        lambda array: array.astype(array.dtype.newbyteorder()),
        lambda array: np.repeat(array, 2, axis=0)[::2],  # not contiguous
    ],
    ids=["list", "tensor", "fortran", "reversed", "byte order", "strided"],
)
def test_any_form_of_the_same_numbers(convert):
    arguments = sample()
    np.testing.assert_array_equal(evaluate_ranking(*map(convert, arguments)).ap, evaluate_ranking(*arguments).ap)


def test_read_only_inputs_stay_as_they_are():
    arguments = sample()
    copies = [array.copy() for array in arguments]
    for array in arguments:
        array.flags.writeable = False
    for metric in ("cosine", "euclidean"):
        evaluate_ranking(*arguments, metric=metric, topk=3)
    for array, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_given_tensors_are_not_written_to():
    tensors = [torch.from_numpy(array) for array in sample()]
    copies = [tensor.clone() for tensor in tensors]
    for metric in ("cosine", "euclidean"):
        evaluate_ranking(*tensors, metric=metric, topk=3)
    distances = torch.cdist(tensors[0], tensors[1])
    before = distances.clone()
    evaluate_distances(distances, *tensors[2:], topk=3)
    assert torch.equal(distances, before)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_features_that_require_gradients():
    query, gallery, *labels = sample()
    learning = [torch.from_numpy(side).requires_grad_() for side in (query, gallery)]
    np.testing.assert_array_equal(evaluate_ranking(*learning, *labels).ap, evaluate_ranking(query, gallery, *labels).ap)


def test_mixed_precision_settings_do_not_reach_the_scores():
    # Training turns these on for speed; a ranking made in bfloat16 would be another one.
    arguments = sample(100, 2000, 64)
    expected = evaluate_ranking(*arguments)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            result = evaluate_ranking(*map(torch.from_numpy, arguments), topk=2)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(result.ap, expected.ap)
    assert ((result.first_hit == 1) == result.topk.hits[:, 0]).all()


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_are_not_finite_are_named(value, metric, dtype):
    query, gallery, *labels = sample()
    gallery = gallery.astype(dtype)
    gallery[[17, 90], 3] = value
    with pytest.raises(UserError, match=r"2 of 150 gallery features are NaN or infinite \(those of images 17, 90"):
        evaluate_ranking(query, gallery, *labels, metric=metric)
    with pytest.raises(UserError, match=r"2 of 150 query features"):
        evaluate_ranking(gallery, query, labels[1], labels[0], labels[3], labels[2], metric=metric)


def test_distances_that_are_not_finite_are_named():
    with pytest.raises(UserError, match=r"1 of 2 rows of distances are NaN or infinite \(those of images 1,"):
        evaluate_distances([[0.0, 1.0], [np.nan, 0.0]], [1, 1], [1, 2], [0, 0], [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_feats": np.ones((150, 15))}, "query features are 16 wide, gallery features 15"),
        ({"query_feats": np.ones(12)}, "query_feats must have the shape"),
        ({"query_feats": np.ones((12, 0)), "gallery_feats": np.ones((150, 0))}, "width 0"),
        ({"query_feats": np.full((12, 16), "a")}, "query_feats must be numbers"),
        ({"query_feats": np.ones((12, 16), dtype=complex)}, "query_feats must be numbers"),
        ({"query_feats": np.ones((0, 16)), "query_ids": [], "query_cams": []}, "the query set is empty"),
        ({"gallery_feats": np.ones((0, 16)), "gallery_ids": [], "gallery_cams": []}, "the gallery set is empty"),
        ({"query_ids": [1] * 11}, r"query_ids must hold one number for each of the 12 images"),
        ({"gallery_cams": [1] * 151}, r"gallery_cams must hold one number for each of the 150 images"),
        ({"gallery_ids": [1.5] * 150}, "gallery_ids must be whole numbers"),
        ({"gallery_ids": [np.nan] * 150}, "gallery_ids must be whole numbers"),
        ({"query_cams": ["c1"] * 12}, "query_cams must be whole numbers"),
        ({"gallery_ids": [-1] * 150}, "no query has a match"),
        ({"metric": "cosin"}, "TEST.TEST_METRIC 'cosin' is not a known metric; known: cosine, euclidean"),
        ({"max_rank": 0}, "max_rank must be a whole number of at least 1"),
        ({"max_rank": 2.5}, "max_rank must be a whole number"),
        ({"topk": -1}, "topk must be a whole number of at least 0"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    names = ("query_feats", "gallery_feats", "query_ids", "gallery_ids", "query_cams", "gallery_cams")
    with pytest.raises(UserError, match=message):
        evaluate_ranking(**(dict(zip(names, sample(), strict=True)) | change))


def test_distances_of_another_shape():
    with pytest.raises(UserError, match=r"distances must have the shape \(queries, gallery\)"):
        evaluate_distances([0.0, 1.0], [1], [1, 2], [0], [1, 1])
    with pytest.raises(UserError, match="gallery_ids must hold one number for each of the 2 images"):
        evaluate_distances([[0.0, 1.0]], [1], [1, 2, 3], [0], [1, 1])


# --- CUDA --------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_cuda_ranks_as_the_cpu_does(metric):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    arguments = sample(200, 3000, 64)
    expected = evaluate_ranking(*arguments, metric=metric, topk=10)
    for count in (2, 1, 6):  # both sides, one side, labels too on the device
        tensors = [torch.from_numpy(array) for array in arguments]
        moved = [tensor.cuda() if place < count else tensor for place, tensor in enumerate(tensors)]
        result = evaluate_ranking(*moved, metric=metric, topk=10)
        np.testing.assert_array_equal(result.ap, expected.ap)
        np.testing.assert_array_equal(result.topk.indices, expected.topk.indices)
    distances = torch.from_numpy(arguments[0] @ arguments[1].T)
    np.testing.assert_array_equal(
        evaluate_distances(distances.cuda(), *arguments[2:]).ap, evaluate_distances(distances, *arguments[2:]).ap
    )
