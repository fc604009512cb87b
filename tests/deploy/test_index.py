"""The index answers as exact arithmetic does, knows whose features it holds, and its file is whole or refused."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from d3still.data import Sample
from d3still.deploy import Embedder, GalleryImage, GalleryIndex, IndexOptions, export_network
from d3still.deploy import index as index_file_module
from d3still.deploy.kinds import KINDS, _least_effort, add, answer_few_together, new_index, set_effort
from d3still.deploy.listing import UNKNOWN, list_images
from d3still.errors import UserError
from tests.deploy.small import make_config, needs, picture, save_pictures, save_run

pytestmark = needs("faiss")


@pytest.fixture(scope="module")
def index(gallery, pictures):
    return GalleryIndex.build(gallery, pictures)


class FakeEmbedder:
    """Features as given, in the place of a network: image number n of a folder has row n."""

    batch_size = 64

    def __init__(self, gallery, features):
        self.description, self._features, self._next = gallery.description, features, 0

    def no_features(self):
        return self._features[:0]

    def embed_pixels(self, pixels):
        self._next += len(pixels)
        return self._features[self._next - len(pixels) : self._next]


def unit(count, seed=0, clusters=40):
    """Clustered features of length 1, (count, 512) float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, 512))
    values = centres[rng.integers(clusters, size=count)] + 0.5 * rng.standard_normal((count, 512))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_exact_search_is_a_sorted_product(index, query, gallery, pictures):
    """Independent implementation: all cosines by numpy, sorted."""
    queries = [picture(number) for number in range(100, 105)]
    paths = sorted(pictures.iterdir())
    cosines = query(queries) @ gallery(paths).T
    found = index.search(query, queries, topk=7)
    for row, matches in zip(cosines, found, strict=True):
        best = np.argsort(-row)[:7]
        assert [match.path for match in matches] == [str(paths[place]) for place in best]
        assert np.allclose([match.score for match in matches], row[best], atol=1e-6)
    one = index.search(query, queries[0], topk=7)
    assert [match.path for match in one] == [match.path for match in found[0]], "one image: one list"


def test_symmetric_search_finds_the_image_itself(index, gallery, pictures):
    path = sorted(pictures.iterdir())[5]
    best = index.search(gallery, path, topk=1)[0]
    assert best.path == str(path) and best.score == pytest.approx(1, abs=1e-5)


def test_topk_beyond_the_gallery(index, query):
    assert len(index.search(query, picture(1), topk=1000)) == len(index) == 40
    for wrong in (0, -1):
        with pytest.raises(UserError, match=f"topk is {wrong}"):
            index.search(query, picture(1), topk=wrong)


def test_save_and_load(index, query, tmp_path):
    index.save(tmp_path / "a.index")
    other = GalleryIndex.load(tmp_path / "a.index")
    assert other.images == index.images and other.header == index.header
    assert other.search(query, picture(1)) == index.search(query, picture(1))
    other.save(tmp_path / "b.index")
    assert (tmp_path / "a.index").read_bytes() == (tmp_path / "b.index").read_bytes()


def test_add_appends_and_equals_a_build_of_all(gallery, query, pictures, tmp_path):
    paths = sorted(pictures.iterdir())
    index = GalleryIndex.build(gallery, paths[:25])
    assert [image.path for image in index.add(gallery, pictures)] == [str(path) for path in paths[25:]]
    assert index.add(gallery, pictures) == [], "what it holds stays as it is"
    whole = GalleryIndex.build(gallery, pictures)
    assert index.images == whole.images
    found, expected = (one.search(query, picture(7), topk=40) for one in (index, whole))
    assert [match.path for match in found] == [match.path for match in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_given_once_and_never_again(gallery, many, tmp_path, kind):
    """FAISS moves numbers up in a flat index, leaves gaps in lists, and would give those of the last ones again."""
    features, paths = unit(600), many
    options = IndexOptions(kind, recall=0.99, code_bytes=128)
    index = GalleryIndex.build(FakeEmbedder(gallery, features), paths, options)
    if kind != "exact":
        set_effort(index.index, 600)  # look at all, so that answers are those of a sorted product
    kept = index.features()
    gone = [0, 7, 8, 300, 598, 599]
    removed = index.remove(gone)
    assert [image.path for image in removed] == [str(paths[place]) for place in gone]
    with pytest.raises(UserError, match="no image of the id 300"):
        index.remove([5, 300])
    index.save(tmp_path / "k.index")
    index = GalleryIndex.load(tmp_path / "k.index")
    assert len(index) == 594 and index.next_id == 600
    index.append(list_images([paths[0], paths[599]]), lambda: iter([features[[0, 599]]]), {}, [UNKNOWN] * 2)
    assert index.ids[-2:].tolist() == [600, 601]
    rest = [*np.delete(np.arange(600), gone), 0, 599]  # what each row is of
    ids = [*np.delete(np.arange(600), gone), 600, 601]
    assert index.ids.tolist() == ids
    assert np.allclose(index.features()[:594], kept[rest[:594]], atol=1e-6)
    cosines = unit(20, 5) @ index.features().T
    scores, rows = index.search_features(unit(20, 5), 10)
    assert np.allclose(scores, -np.sort(-cosines, axis=1)[:, :10], atol=1e-4)
    assert np.allclose(np.take_along_axis(cosines, rows, 1), scores, atol=1e-4), "a score is that of its own image"


def test_the_last_image_may_go(index, query, tmp_path, gallery):
    index = GalleryIndex.build(gallery, save_pictures(tmp_path, 2))
    index.remove([0, 1])
    index.save(tmp_path / "empty.index")
    index = GalleryIndex.load(tmp_path / "empty.index")
    assert len(index) == 0 and index.search(query, picture(1)) == []
    index.add(gallery, tmp_path)
    assert index.ids.tolist() == [2, 3]


def test_identities_and_boxes_come_with_the_answers(gallery, tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(np.hstack([picture(1), picture(2)])).save(path)
    boxes = [(0, 0, 40, 30), (40, 0, 80, 30)]
    index = GalleryIndex.build(gallery, [GalleryImage(str(path), f"id{n}", box) for n, box in enumerate(boxes)])
    index.save(tmp_path / "boxes.index")
    for number, box in enumerate(boxes):
        best = GalleryIndex.load(tmp_path / "boxes.index").search(gallery, picture(number + 1), topk=1)[0]
        assert (best.identity, best.box) == (f"id{number}", box) and best.score == pytest.approx(1, abs=1e-5)
    samples = [Sample(str(path), 7, 0, box) for box in boxes]
    assert [image.identity for image in GalleryIndex.build(gallery, samples).images] == ["7", "7"]


def test_another_networks_features_are_refused(index, tmp_path, pictures, query):
    """After ACD the gallery network is another one, though the query network is the same."""
    retrained = save_run(tmp_path / "acd.pth", query=1, gallery=3)
    for part in ("query", "gallery"):
        with pytest.raises(UserError, match=r"After ACD .*must be embedded again.*index_net\.py build") as caught:
            index.search(Embedder.from_checkpoint(retrained, part), picture(1))
        hashes = [index.header["embedding"], Embedder.from_checkpoint(retrained, "gallery").description.embedding()]
        assert all(embedding["weights_hash"][:12] in str(caught.value) for embedding in hashes), "both are named"
    before = len(index)
    with pytest.raises(UserError, match=r"made by the gallery network TestNet.*must be embedded again"):
        index.add(Embedder.from_checkpoint(retrained, "gallery"), pictures)
    with pytest.raises(UserError, match="must be embedded again"):
        index.add(query, pictures)
    assert len(index) == before


def test_the_same_weights_at_another_size_are_refused(index, tmp_path, pictures):
    path = save_run(tmp_path / "last.pth", cfg=make_config(INPUT__SIZE_TEST=[30, 30]))
    with pytest.raises(UserError, match=r"other settings \(size \[22, 26\] → \[30, 30\]\)"):
        index.add(Embedder.from_checkpoint(path, "gallery"), pictures)


@needs("onnxruntime", "onnxscript", "onnx", "safetensors")
def test_exports_know_which_gallery_they_belong_with(index, query, exported, run, tmp_path):
    own = export_network(run, "query", "safetensors", tmp_path / "own.safetensors")
    expected = index.search(query, picture(9), topk=5)
    for export in (exported, own):
        found = index.search(Embedder.from_checkpoint(export.path), picture(9), topk=5)
        assert [match.path for match in found] == [match.path for match in expected]
    retrained = save_run(tmp_path / "acd.pth", query=1, gallery=3)
    other = export_network(retrained, "query", "safetensors", tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="must be embedded again"):
        index.search(Embedder.from_checkpoint(other.path), picture(9))


def test_a_lone_query_network_is_let_in_with_a_warning(index, run, tmp_path, caplog):
    state = torch.load(run, weights_only=True)["query"]
    torch.save({f"student.{key}": value for key, value in state.items()}, tmp_path / "student.pth")
    embedder = Embedder.from_checkpoint(tmp_path / "student.pth", "query", config=make_config())
    assert len(index.search(embedder, picture(1), topk=3)) == 3
    assert "its file does not tell" in caplog.text


def test_torch_in_faiss_changes_no_answer(gallery, many):
    """pytorch-metric-learning imports FAISS's torch_utils, which replaces methods of every index of the process."""
    features = unit(600)
    index = GalleryIndex.build(FakeEmbedder(gallery, features), many, IndexOptions("exact"))
    importlib.import_module("faiss.contrib.torch_utils")
    assert np.array_equal(index.features(), features) and isinstance(index.features(), np.ndarray)
    _, found = index.search_features(features[:2], 3, np.array([0]))
    assert found[1, 0] == 1 and 0 not in found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_searchable_and_tells_its_recall(gallery, many, tmp_path, kind):
    count = len(many)
    features = unit(count)
    index = GalleryIndex.build(FakeEmbedder(gallery, features), many, IndexOptions(kind, recall=0.9, code_bytes=128))
    index.save(tmp_path / "k.index")
    index = GalleryIndex.load(tmp_path / "k.index")
    assert len(index) == count
    recall = index.header["recall"]
    kept = index.features()
    assert np.array_equal(kept, features) if kind != "ivfpq" else (kept * features).sum(1).mean() > 0.9
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)
    best = np.argsort(-cosines, axis=1)[:, :10]
    if kind == "exact":
        assert recall is None
        _, found = index.search_features(features, 11)
        assert all(set(row) - {own} == set(truth) for own, (row, truth) in enumerate(zip(found, best, strict=True)))
        return
    queries = np.unique(np.linspace(0, count - 1, 500).astype(int))  # those that the index was measured with
    _, found = index.search_features(features[queries], 11)
    without_itself = [[place for place in row if place != own][:10] for row, own in zip(found, queries, strict=True)]
    shares = [len(set(row) & set(best[own])) / 10 for row, own in zip(without_itself, queries, strict=True)]
    assert recall["value"] == pytest.approx(np.mean(shares), abs=1e-4), "measured against exact search"
    assert (recall["at"], recall["queries"], recall["images"]) == (10, 500, count)
    assert recall["value"] >= 0.9 or kind == "ivfpq", "codes lose what no effort brings back"
    assert recall["value"] > 0.4


@pytest.mark.parametrize(
    ("threshold", "highest", "wanted", "kind", "expected"),
    [
        (1, 100, 0.9, "ivf", (1, 0.9)),
        (2, 100, 0.9, "ivf", (2, 0.9)),
        (37, 100, 0.9, "ivf", (40, 0.9)),  # 1, 2, 4, … 64, then 48, 40 and 36, which is too little
        (70, 100, 0.9, "ivf", (73, 0.9)),  # 64, 100, then 82 and 73, an eighth above 64
        (1000, 100, 0.9, "ivf", (100, 0.1)),  # never
        (1000, 100, 0.9, "ivfpq", (2, 0.1)),  # twice the effort adds nothing
        (3, 2, 0.9, "ivf", (2, 0.1)),
    ],
)
def test_effort_is_the_least_that_reaches_the_recall(threshold, highest, wanted, kind, expected):
    asked = []

    def measured(effort):
        asked.append(effort)
        return 0.9 if effort >= threshold else 0.1

    assert _least_effort(measured, 1, highest, IndexOptions(kind, wanted)) == expected
    assert max(asked) <= highest and len(asked) < 12


def test_kinds_that_cannot_be_are_refused(gallery, pictures):
    with pytest.raises(UserError, match="kind of index 'lsh' is not known; choose exact, ivf"):
        IndexOptions("lsh")
    with pytest.raises(UserError, match="recall 2 must be"):
        IndexOptions(recall=2)
    with pytest.raises(UserError, match="codes of 60 bytes do not divide features of width 512"):
        GalleryIndex.build(gallery, pictures, IndexOptions("ivfpq", code_bytes=60))
    with pytest.raises(UserError, match="at least 256 images, not 40; use exact"):
        GalleryIndex.build(gallery, pictures, IndexOptions("ivfpq"))


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "exact"])
def test_tiny_galleries(gallery, query, tmp_path, kind):
    for count in (1, 2, 3):
        index = GalleryIndex.build(gallery, save_pictures(tmp_path / str(count), count), IndexOptions(kind))
        assert len(index.search(query, picture(1), topk=10)) == count


def test_any_cut_of_the_file_is_refused(index, tmp_path):
    index.save(tmp_path / "whole.index")
    content = (tmp_path / "whole.index").read_bytes()
    path = tmp_path / "cut.index"
    for length in [*range(0, 300), *range(300, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.index: (is cut short|is no gallery index)") as caught:
            GalleryIndex.load(path)
        assert "build it again" in str(caught.value) and "\n" not in str(caught.value)


def test_any_changed_byte_is_noticed_or_changes_nothing(index, tmp_path):
    """Some bytes of an archive mean nothing (times, attributes); with all others the file is refused."""
    index.save(tmp_path / "whole.index")
    content = bytearray((tmp_path / "whole.index").read_bytes())
    path = tmp_path / "changed.index"
    refused = 0
    places = [*range(0, 120), *range(120, len(content) - 400, 499), *range(len(content) - 400, len(content))]
    for place in places:
        changed = content.copy()
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = GalleryIndex.load(path)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
        else:
            assert (found.header, found.images, found.next_id) == (index.header, index.images, index.next_id), place
            assert np.array_equal(found.features(), index.features()), place
    assert refused > 0.7 * len(places)


def test_an_index_of_version_1_is_named(tmp_path):
    (tmp_path / "old.index").write_bytes(b"d3still gallery index\n" + bytes(200))
    with pytest.raises(UserError, match=r"old\.index: is a gallery index of an earlier d3still; build it again"):
        GalleryIndex.load(tmp_path / "old.index")


def test_another_version_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(index_file_module, "VERSION", 3)
    index.save(tmp_path / "new.index")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"new\.index: is a gallery index of version 3, but .* reads version 2"):
        GalleryIndex.load(tmp_path / "new.index")


@pytest.mark.parametrize("content", [b"", b"plain text, and nothing like an index", "faiss", "folder", None])
def test_what_is_no_index_is_refused(index, tmp_path, content):
    path = tmp_path / "odd.index"
    if content == "faiss":
        import faiss

        faiss.write_index(index.index, str(path))
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.index: (is no gallery index|no such gallery index|is a folder)"):
        GalleryIndex.load(path)


def test_a_save_that_fails_leaves_the_former_file(index, query, tmp_path, monkeypatch):
    path = tmp_path / "a.index"
    index.save(path)
    before = path.read_bytes()

    def full(index, write):
        write(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file_module, "write_faiss", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.index.*the former file is kept"):
        index.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.index"]


def test_unreadable_images_are_listed_and_left_out(gallery, query, tmp_path, caplog):
    paths = save_pictures(tmp_path, 6)
    paths[1].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:50])
    listed = [*paths, tmp_path / "gone.png"]
    index = GalleryIndex.build(gallery, listed)
    assert [image.path for image in index.images] == [str(paths[n]) for n in (0, 2, 3, 5)]
    unreadable = index.header["unreadable"]
    assert list(unreadable) == [str(path) for path in (paths[1], paths[4], tmp_path / "gone.png")]
    assert "is empty" in unreadable[str(paths[1])] and "cannot be decoded" in unreadable[str(paths[4])]
    assert not any("ON_BAD_IMAGE" in why for why in unreadable.values()), "advice that helps here"
    expected = GalleryIndex.build(gallery, [paths[n] for n in (0, 2, 3, 5)])
    one, other = (i.search(query, picture(1), topk=4) for i in (index, expected))
    assert [m.path for m in one] == [m.path for m in other], "features stay with their own images"
    save_pictures(tmp_path, 2)  # 1 is sound again
    assert [image.path for image in index.add(gallery, listed)] == [str(paths[1])]
    assert list(index.header["unreadable"]) == [str(paths[4]), str(tmp_path / "gone.png")]


def test_a_gallery_without_a_readable_image_is_an_error(gallery, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; .*a\.jpg cannot be decoded"):
        GalleryIndex.build(gallery, tmp_path)


def test_features_that_are_not_finite_are_refused(gallery, index, pictures):
    features = unit(40)
    features[3, 7] = np.nan
    with pytest.raises(UserError, match=r"0003\.png is not finite"):
        GalleryIndex.build(FakeEmbedder(gallery, features), pictures)
    with pytest.raises(UserError, match="query 3 is not finite"):
        index.search_features(features)
    for wrong in (unit(3)[:, :100], unit(1)[0]):
        with pytest.raises(UserError, match=r"do not fit an index of \(Q, 512\)"):
            index.search_features(wrong)


def test_faiss_missing_is_named(gallery, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs the package faiss-cpu.*pip install -r requirements-deploy\.txt"):
        GalleryIndex.build(gallery, pictures)


def test_names_that_are_no_unicode(gallery, tmp_path):
    import os

    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff \xe4\xbd\xa0.png")
    try:
        Image.fromarray(picture(1)).save(path)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    GalleryIndex.build(gallery, tmp_path).save(tmp_path / "a.index")
    assert GalleryIndex.load(tmp_path / "a.index").images[0].path == path
    assert json.dumps([path])


def test_few_queries_are_answered_together_with_the_same_answers(monkeypatch):
    """From 8 of 64 numbers; where FAISS itself does so from fewer on, that stays."""
    import faiss

    features = np.random.default_rng(0).standard_normal((300, 64), np.float32)
    index = new_index(IndexOptions(), 64, 300)
    add(index, lambda: iter([features]))
    one_by_one = index.search(features[:40], 5)
    for own, expected in ((128_000, 512), (20, 20)):
        monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", own)
        answer_few_together(64)
        assert faiss.cvar.distance_compute_blas_threshold == expected
        together = index.search(features[:40], 5)
        assert (together[1] == one_by_one[1]).all() and np.allclose(together[0], one_by_one[0], atol=1e-4)
