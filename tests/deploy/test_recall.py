"""Recall is that of the queries which will be asked: the query network's, of images that the gallery does not hold."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from d3still.deploy import Embedder, GalleryIndex, IndexBuilder, IndexOptions
from d3still.deploy.kinds import held_out, recall_queries
from d3still.deploy.listing import list_images
from d3still.errors import UserError
from tests.deploy.small import make_config, needs, save_pictures, save_run
from tests.tiny import make_veri

pytestmark = needs("faiss")
OWN = "160 images of the gallery, each left out of its own answers"
OPTIONS = IndexOptions("ivf", recall=0.6)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("gallery"), 160)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images that the gallery does not hold."""
    return save_pictures(tmp_path_factory.mktemp("others"), 30, first=400)


def true_recall(index, gallery_features, features):
    """Independent: the share of the ten largest products that the index's first ten answers hold."""
    best = np.argsort(-(features @ gallery_features.T), axis=1)[:, :10]
    _, found = index.search_features(features, 10)
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])


def test_recall_is_that_of_the_query_network_on_other_images(gallery, query, pictures, others, tmp_path, caplog):
    out = IndexBuilder(gallery, tmp_path / "g.index").build(pictures, OPTIONS, queries=others)
    for index in (GalleryIndex.load(out), GalleryIndex.build(gallery, pictures, OPTIONS, others)):
        recall = index.header["recall"]
        assert recall["value"] == pytest.approx(true_recall(index, gallery(pictures), query(others)), abs=1e-4)
        assert recall["value"] != pytest.approx(true_recall(index, gallery(pictures), gallery(others)), abs=1e-4)
        assert recall["measured_with"].startswith("30 images that the gallery does not hold, query network TestNet")
        assert recall["queries"] == 30 and recall["value"] >= 0.6
    assert "images of the gallery itself" not in caplog.text


def test_where_no_other_images_are_known_it_is_said(gallery, query, pictures, caplog):
    """Gallery images then ask, by the query network, each left out of its own answers."""
    index = GalleryIndex.build(gallery, pictures, OPTIONS)
    assert "recall is measured with images of the gallery itself" in caplog.text and "--queries" in caplog.text
    recall = index.header["recall"]
    assert recall["measured_with"].startswith(f"{OWN}, query network TestNet")
    cosines = query(pictures) @ gallery(pictures).T
    np.fill_diagonal(cosines, -2)
    best = np.argsort(-cosines, axis=1)[:, :10]
    _, found = index.search_features(query(pictures), 11)
    answers = [[place for place in row if place != own][:10] for own, row in enumerate(found)]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(answers, best, strict=True)]
    assert recall["value"] == pytest.approx(np.mean(shares), abs=1e-4)


def test_a_copy_of_a_gallery_image_is_not_held_out(gallery, pictures, others, tmp_path):
    copies = tmp_path / "queries"
    copies.mkdir()
    shutil.copy(pictures[3], copies / "copy.png")
    (copies / "link.png").symlink_to(pictures[5])
    with pytest.raises(UserError, match=r"queries: the gallery holds all of these images; name others as --queries"):
        held_out(gallery, list_images(pictures), copies)
    shutil.copy(others[0], copies / "new.png")
    assert [image.path for image in held_out(gallery, list_images(pictures), copies)] == [str(copies / "new.png")]


def test_the_runs_own_queries_ask_where_the_gallery_is_the_runs(tmp_path, pictures):
    root = make_veri(tmp_path / "VeRi")
    cfg = make_config(DATASETS__NAMES="VeRi776", DATASETS__ROOT_DIR=str(root))
    gallery = Embedder.from_checkpoint(save_run(tmp_path / "last.pth", cfg=cfg), "gallery")
    listed = list_images(root / "image_test")
    assert held_out(gallery, listed, None) == [], "VeRi-776 keeps its queries among the test images, too"
    asking = {image.path.rpartition("/")[2] for image in list_images(root / "image_query")}
    without = [image for image in listed if image.path.rpartition("/")[2] not in asking]
    assert {image.path.rpartition("/")[2] for image in held_out(gallery, without, None)} == asking
    assert held_out(gallery, list_images(pictures), None) == [], "a gallery of something else"
    unknown = SimpleNamespace(description=replace(gallery.description, config={}))
    assert held_out(unknown, listed, None) == [], "a config that names no dataset"


def test_a_file_without_a_query_network(tmp_path, pictures, others):
    """Stage 0: the gallery network asks too, and the index says which network it was."""
    path = save_run(tmp_path / "last.pth", query=None, cfg=make_config("NONE"))
    gallery = Embedder.from_checkpoint(path, "gallery")
    assert gallery.query_network() is None and recall_queries(gallery, list_images(pictures), [], None) is None
    recall = GalleryIndex.build(gallery, pictures, OPTIONS, others).header["recall"]
    assert recall["measured_with"].startswith("30 images that the gallery does not hold, gallery network TestNet")
    recall = GalleryIndex.build(gallery, pictures, OPTIONS).header["recall"]
    assert recall["measured_with"] == f"{OWN}, by the gallery network"
