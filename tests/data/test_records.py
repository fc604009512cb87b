"""What every dataset promises: relabelled, numbered, sorted lists, and the options of build_dataset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d3still.data import DATASETS, Record, RetrievalDataset, Sample, build_dataset
from d3still.data.datasets.files import find_images
from d3still.errors import UserError
from tests.data.helpers import save_all


def build(train=(("a", "1", 0),), query=(("q", 1, 0),), gallery=(("g", 1, 1),)):
    return RetrievalDataset.from_records("own", *([Record(*r) for r in part] for part in (train, query, gallery)))


def test_training_identities_are_relabelled_by_number():
    data = build(train=[("d", "10", 0), ("c", "9", 0), ("b", "776", 1), ("a", "0009", 2)])
    assert data.train == [Sample("a", 0, 2), Sample("b", 2, 1), Sample("c", 0, 0), Sample("d", 1, 0)]
    assert data.identity_map == {"9": 0, "10": 1, "776": 2}
    assert data.num_classes == 3


def test_training_identities_are_relabelled_by_name_where_one_is_no_number():
    data = build(train=[("a", "b", 0), ("b", "10", 0), ("c", "9", 0)])
    assert data.identity_map == {"10": 0, "9": 1, "b": 2}


def test_tested_identities_keep_their_number():
    data = build(query=[("q", "0700", 0)], gallery=[("g", 700, 1), ("h", 0, 1), ("j", -1, 0)])
    assert data.query == [Sample("q", 700, 0)]
    assert [sample.identity for sample in data.gallery] == [700, 0, -1]  # 0 is ordinary, −1 is junk


def test_tested_names_are_numbered_and_junk_stays_junk():
    data = build(query=[("q", "rose", 0)], gallery=[("g", "rose", 1), ("h", "aster", 1), ("j", "-1", 1)])
    assert [sample.identity for sample in data.gallery] == [1, 0, -1]
    assert data.query[0].identity == 1


def test_identities_keep_the_names_they_were_given():
    data = build(
        train=[("a", "0009", 0), ("b", "9", 0)],
        query=[("q", "shoe-17", 0)],
        gallery=[("g", "shoe-17", 1), ("h", "08", 1), ("j", "-1", 1)],
    )
    assert [sample.name for sample in data.train] == ["0009", "0009"]  # one identity has one name
    assert [sample.name for sample in data.query + data.gallery] == ["shoe-17", "shoe-17", "08", "-1"]
    assert data.identity_names == {1: "shoe-17", 0: "08", -1: "-1"}
    assert build(query=[("q", 7, 0)], gallery=[("g", "007", 1)]).identity_names == {7: "7"}
    code = "4" * 5000  # more digits than a number here, or Python's own reading of one, takes
    assert build(query=[("q", code, 0)], gallery=[("g", code, 1)]).identity_names == {0: code}
    assert build(query=[("q", int("4" * 20), 0)], gallery=[("g", "4" * 20, 1)]).query[0].identity == 0
    assert Sample("a", 3, 0).name == "3" and Sample("a", 3, 0, name="x") == Sample("a", 3, 0)


def test_without_cameras_each_file_is_its_own_also_as_query_and_gallery_at_once():
    both = [("b", 5), ("a", 5), ("c", 5)]
    data = build(query=both, gallery=[*both, ("d", 5)])
    assert [sample.camera for sample in data.query] == [0, 1, 2]
    assert [sample.camera for sample in data.gallery] == [0, 1, 2, 3]
    mixed = build(query=[("q", 5, 7)], gallery=[("g", 5), ("h", 5)])
    assert [sample.camera for sample in mixed.gallery] == [8, 9]  # none of those in use


def test_validation_holds_out_every_seventh_training_identity():
    train = [(f"{i:02}_{k}.jpg", f"shoe-{i:02}", k) for i in range(15) for k in range(2)]
    data = build(train=train, query=[("q", "hat", 0)]).hold_out()
    assert data.num_classes == 13 and "shoe-06" not in data.identity_map
    assert {sample.name for sample in data.train} == {f"shoe-{i:02}" for i in range(15)} - {"shoe-06", "shoe-13"}
    assert [(s.path, s.name, s.camera) for s in data.query] == [
        ("06_0.jpg", "shoe-06", 0), ("06_1.jpg", "shoe-06", 1), ("13_0.jpg", "shoe-13", 0), ("13_1.jpg", "shoe-13", 1),
    ]  # fmt: skip
    assert data.gallery == data.query
    one_camera = build(train=[(path, name, 1) for path, name, _ in train]).hold_out()
    assert [sample.camera for sample in one_camera.query] == [0, 1, 2, 3]  # else no query would have a match


def test_what_is_wrong_is_named():
    with pytest.raises(UserError, match="own: the gallery part holds no image"):
        build(gallery=[])
    with pytest.raises(UserError, match="own: a is listed twice in the train part"):
        build(train=[("a", 1, 0), ("a", 2, 0)])
    with pytest.raises(UserError, match=r"camera 4{30} of g is no number that a camera can have"):
        build(gallery=[("g", 1, int("4" * 30))])
    with pytest.raises(UserError, match="training image j has the junk identity"):
        build(train=[("a", 1, 0), ("j", "-1", 0)])


def test_counts_and_their_comparison():
    data = build(gallery=[("g", 1, 1), ("h", 2, 1), ("j", -1, 4)])
    assert data.counts() == {
        "train images": 1, "train identities": 1, "query images": 1, "query identities": 1,
        "gallery images": 3, "gallery identities": 2, "cameras": 3,
    }  # fmt: skip
    data.compare_with_published({"train images": (1, 5), "gallery images": (4000, 5), "cameras": (3,)})
    assert data.notes == ["3 gallery images, published: 4,000 or 5"]


def test_images_are_found_by_suffix_whatever_its_case_and_hidden_ones_are_not(tmp_path):
    good = ["A.JPG", "b.jpeg", "sub dir/c.PNG", "sub dir/ü.webp"]
    save_all(tmp_path, good)
    for name in ("._A.JPG", ".hidden/d.jpg", "list.txt", "Thumbs.db", "e.jpg.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_images(tmp_path) == [str(tmp_path / name) for name in good]


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    save_all(tmp_path / "far", ["a.jpg"])
    (tmp_path / "near").mkdir()
    (tmp_path / "near/link").symlink_to(tmp_path / "far")
    (tmp_path / "near/circle").symlink_to(tmp_path / "near")
    assert find_images(tmp_path / "near") == [str(tmp_path / "near/link/a.jpg")]


def make_folder(root):
    save_all(root, [f"{p}/{i}/{n}.jpg" for p in ("train", "query", "gallery") for i in "ba" for n in "21"])


def test_lists_depend_on_neither_hash_seed_nor_order_of_creation(tmp_path):
    make_folder(tmp_path / "one")
    script = "import sys; from d3still.data import build_dataset; print(build_dataset('folder', sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path / "one")]
    other = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=other, capture_output=True, text=True, check=True)
    assert done.stdout == f"{build_dataset('folder', tmp_path / 'one')}\n"


def test_options_and_names_that_a_dataset_does_not_have(tmp_path):
    make_folder(tmp_path)
    with pytest.raises(UserError, match="did you mean 'folder'"):
        build_dataset("foldr", tmp_path)
    with pytest.raises(UserError, match=r"folder: DATASETS\.SPLIT 'val' holds out every 7th .* there are 2"):
        build_dataset("folder", tmp_path, split="val")
    with pytest.raises(UserError, match=r"DATASETS\.SPLIT 'train'"):
        build_dataset("folder", tmp_path, split="train")
    with pytest.raises(UserError, match=r"DATASETS\.CAMERA_PATTERN"):
        build_dataset("csv", tmp_path, camera_pattern="c(.)")
    with pytest.raises(UserError, match=r"nowhere does not exist; set DATASETS\.ROOT_DIR"):
        build_dataset("folder", tmp_path / "nowhere")


def test_a_new_dataset_is_one_decorated_function(tmp_path, caplog):
    @DATASETS.register("own_set_of_this_test")
    def own(root):
        data = build()
        data.notes.append("one image is upside down")
        return data

    assert build_dataset("own_set_of_this_test", tmp_path).num_classes == 1
    assert "own_set_of_this_test: one image is upside down" in caplog.text
