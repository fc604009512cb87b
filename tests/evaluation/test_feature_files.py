"""Feature files: read as other tools write them, refused with the file and the array named."""

import os

import numpy as np
import pytest
import torch

from d3still.errors import UserError
from d3still.evaluation import FeatureSet, evaluate_ranking, load_features, pair_cameras, save_features


def test_what_is_saved_is_loaded(tmp_path):
    file = tmp_path / "deep" / "query.npz"
    features = torch.randn(4, 3)
    save_features(file, features, [3, -1, 0, 7], cams=torch.arange(4), paths=["a.jpg", "ü ber.jpg", "c", "d"])
    loaded = load_features(str(file))
    np.testing.assert_array_equal(loaded.features, features)
    assert loaded.features.dtype == np.float32
    assert loaded.ids.tolist() == [3, -1, 0, 7] and loaded.cams.tolist() == [0, 1, 2, 3]
    assert loaded.paths.tolist() == ["a.jpg", "ü ber.jpg", "c", "d"] and len(loaded) == 4
    assert [found.name for found in file.parent.iterdir()] == ["query.npz"]


def test_cameras_and_paths_may_be_missing(tmp_path):
    save_features(tmp_path / "f.npz", np.ones((2, 3)), [1, 2])
    loaded = load_features(tmp_path / "f.npz")
    assert loaded.cams is None and loaded.paths is None


@pytest.mark.parametrize(
    "names", [("feats", "pids", "camids"), ("feat", "labels", "cams"), ("embeddings", "ids", "cameras")]
)
def test_names_that_other_tools_use(tmp_path, names):
    np.savez_compressed(tmp_path / "f.npz", **dict(zip(names, (np.eye(3), np.arange(3), np.ones(3)), strict=True)))
    loaded = load_features(tmp_path / "f.npz")
    assert loaded.features.shape == (3, 3) and loaded.ids.tolist() == [0, 1, 2] and loaded.cams.tolist() == [1, 1, 1]


def test_half_precision_files_are_ranked(tmp_path):
    np.savez(tmp_path / "f.npz", features=np.eye(3, dtype=np.float16), ids=np.zeros(3, np.uint8))
    found = load_features(tmp_path / "f.npz")
    cams = pair_cameras(found, found)
    assert evaluate_ranking(found.features, found.features, found.ids, found.ids, *cams).num_valid == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.arange(2)}, "has no array 'features' (also understood: feats"),
        ({"features": np.ones((2, 3))}, "has no array 'ids' (also understood: pids"),
        ({"features": np.ones(3), "ids": np.arange(3)}, "'features' must have the shape (images, width), not (3,)"),
        ({"features": np.full((2, 3), "x"), "ids": np.arange(2)}, "'features' must be numbers"),
        ({"features": np.ones((2, 3)), "ids": np.arange(3)}, "'ids' must hold one number for each of the 2 images"),
        ({"features": np.ones((2, 3)), "ids": np.array(["a", "b"])}, "'ids' must be whole numbers"),
        ({"features": np.ones((2, 3)), "ids": np.arange(2), "cams": np.ones(3)}, "'cams' must hold one number"),
        ({"features": np.ones((2, 3)), "ids": np.arange(2), "paths": np.arange(2)}, "'paths' must be 2 strings"),
        ({"features": np.ones((2, 3)), "feats": np.ones((2, 3)), "ids": np.arange(2)}, "both 'features' and 'feats'"),
        ({"features": np.array([[1], [None]]), "ids": np.arange(2)}, "'features' is not an array of plain numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, arrays, message):
    file = tmp_path / "features.npz"
    np.savez(file, **arrays)
    with pytest.raises(UserError) as caught:
        load_features(file)
    assert str(file) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_files_that_are_no_archives(tmp_path, content):
    file = tmp_path / "features.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"features\.npz is not a readable \.npz file"):
        load_features(file)


def test_a_truncated_archive(tmp_path):
    file = tmp_path / "features.npz"
    save_features(file, np.random.default_rng(0).random((100, 30)), np.arange(100))
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"features\.npz is not a readable \.npz file"):
        load_features(file)


def test_a_single_array_and_a_missing_file(tmp_path):
    np.save(tmp_path / "f.npy", np.eye(2))
    with pytest.raises(UserError, match=r"f\.npy holds a single array"):
        load_features(tmp_path / "f.npy")
    with pytest.raises(UserError, match=r"gone\.npz does not exist"):
        load_features(tmp_path / "gone.npz")
    with pytest.raises(UserError, match="is not a readable"):
        load_features(tmp_path)


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    np.savez(tmp_path / "f.npz", features=np.array([Harm()], dtype=object), ids=np.arange(1))
    with pytest.raises(UserError, match="plain numbers"):
        load_features(tmp_path / "f.npz")
    assert not (tmp_path / "harmed").exists()


def test_what_does_not_fit_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="'ids' must hold one number for each of the 2 images"):
        save_features(tmp_path / "f.npz", np.ones((2, 3)), [1, 2, 3])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_features(tmp_path / "f.npz", np.ones((2, 3)), [1, 2])

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write .*disk full; the former file is kept"):
        save_features(tmp_path / "f.npz", np.zeros((2, 3)), [1, 2])
    assert [found.name for found in tmp_path.iterdir()] == ["f.npz"]
    np.testing.assert_array_equal(load_features(tmp_path / "f.npz").features, np.ones((2, 3)))


# --- cameras -----------------------------------------------------------------------------------------


def of(count, **more):
    return FeatureSet(np.random.default_rng(count).random((count, 2)), np.zeros(count, int), **more)


def test_given_cameras_stay():
    query, gallery = of(2, cams=np.array([4, 5])), of(3, cams=np.array([4, 4, 6]))
    assert [cams.tolist() for cams in pair_cameras(query, gallery)] == [[4, 5], [4, 4, 6]]


def test_cameras_on_one_side_only():
    with pytest.raises(UserError, match="the gallery features have 'cams', the query features have none"):
        pair_cameras(of(2), of(3, cams=np.zeros(3, int)))


def test_without_cameras_the_same_path_is_the_same_image():
    query, gallery = of(2, paths=np.array(["b", "x"])), of(3, paths=np.array(["a", "b", "c"]))
    query_cams, gallery_cams = pair_cameras(query, gallery)
    assert query_cams[0] == gallery_cams[1] and len({*query_cams, *gallery_cams}) == 4


def test_without_cameras_and_paths_equal_sets_are_the_same_images():
    same = pair_cameras(of(3), of(3))
    assert same[0].tolist() == same[1].tolist() and len(set(same[0])) == 3
    query_cams, gallery_cams = pair_cameras(of(2), of(3))
    assert len({*query_cams, *gallery_cams}) == 5
