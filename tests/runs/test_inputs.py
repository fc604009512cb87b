"""What a run is made from is told by its content: moving it is free, changing it is named."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from d3still.data import build_dataset
from d3still.runs.inputs import fingerprint, input_changes, relative_names, weights_fingerprint


def dataset(root):
    return build_dataset("folder", str(root))


@pytest.fixture
def images(tmp_path):
    for part in ("train", "query", "gallery"):
        for number in range(4):
            path = tmp_path / "data" / part / f"shoe-{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    return tmp_path / "data"


def changes(images, before):
    return input_changes(before, fingerprint({}, dataset(images)))


def test_images_may_lie_elsewhere(images, tmp_path):
    before = fingerprint({}, dataset(images))
    assert changes(shutil.copytree(images, tmp_path / "somewhere/else"), before) == []


def test_other_images_are_named(images):
    before = fingerprint({}, dataset(images))
    victim = images / "train/shoe-0/0.png"
    victim.write_bytes(victim.read_bytes() + b" ")
    assert changes(images, before) == ["names, sizes or labels of the training images are others"]
    victim.unlink()
    assert changes(images, before) == ["there are 3 training images, not 4"]
    (images / "gallery/shoe-1/3.png").rename(images / "gallery/shoe-0/3.png")
    assert changes(images, before)[1:] == ["names, sizes or labels of the gallery images are others"]


def test_weights_are_told_by_their_tensors(tmp_path):
    network = {"conv.weight": torch.ones(2, 3), "bn.num_batches_tracked": torch.tensor(3)}
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    torch.save({"format": "d3still", "gallery": network, "query": None, "progress": {"seconds": 1.0}}, one)
    before = {"weights": weights_fingerprint({"TEACHER_MODEL_PATH": one})}
    torch.save({"format": "d3still", "gallery": network, "query": None, "progress": {"seconds": 2.0}}, other)
    assert input_changes(before, {"weights": weights_fingerprint({"TEACHER_MODEL_PATH": other})}) == [], (
        "trained again, bit for bit"
    )
    network["conv.weight"][0, 0] = 1.0000001
    torch.save({"format": "d3still", "gallery": network, "query": None}, other)
    found = input_changes(before, {"weights": weights_fingerprint({"TEACHER_MODEL_PATH": other})})
    assert found == ["the weights that DISTILLER.TEACHER_MODEL_PATH names are others"]


def test_what_is_not_known_is_not_compared(tmp_path, images):
    now = fingerprint({"TEACHER_MODEL_PATH": tmp_path / "gone.pth"}, dataset(images))
    assert now["weights"] == {} and input_changes({}, now) == [] and input_changes(now, {}) == []


def test_names_do_not_say_where_the_data_lies():
    assert relative_names(["/a/b/c/1.png", "/a/b/d/2.png"]) == ["c/1.png", "d/2.png"]
    assert relative_names(["C:\\x\\c\\1.png", "C:\\x\\d\\2.png"]) == ["c/1.png", "d/2.png"]
