"""A gallery in Milvus answers as an exact FAISS index does, and its images change in the same ways."""

from types import SimpleNamespace

import numpy as np
import pytest

from d3still.deploy import GalleryImage, GalleryIndex, IndexBuilder, IndexOptions
from d3still.deploy.gallery import header_of
from d3still.deploy.kinds import add, new_index
from d3still.deploy.listing import UNKNOWN
from d3still.deploy.milvus import MilvusGallery
from d3still.deploy.store import Ranks
from d3still.errors import UserError
from tests.deploy.small import needs, save_pictures
from tests.deploy.test_index import unit
from tests.tiny import REPOSITORY

pytestmark = needs("faiss", "pymilvus", "milvus_lite")
COUNT = 5000
ODD = "a\"'\\ or id >= 0 \u202e\udcff"  # what a filter might mistake for a part of itself


@pytest.fixture(scope="module")
def features():
    return unit(COUNT, 1, clusters=200)


@pytest.fixture(scope="module")
def both(gallery, features, tmp_path_factory):
    """The same 5,000 features in both engines."""
    names = [ODD, *(f"shoe-{n}" for n in range(1, 200)), None]
    images = [GalleryImage(f"/{n}.png", names[n % 201], None, str(n % 7)) for n in range(COUNT)]
    header = header_of(gallery.description, IndexOptions(), {})
    faiss = new_index(IndexOptions(), 512, COUNT)
    add(faiss, lambda: iter([features]))
    uri = str(tmp_path_factory.mktemp("milvus") / "gallery.db")
    milvus = MilvusGallery.create(uri, header)
    milvus.append(images, lambda: iter(np.array_split(features, 3)), {}, [UNKNOWN] * len(images))
    yield GalleryIndex(faiss, images, header), milvus, uri
    milvus.close()


def same(one, other):
    """The same images in the same order, but where two scores are as good as equal."""
    for ours, theirs in zip(one, other, strict=True):
        assert np.allclose([match.score for match in ours], [match.score for match in theirs], atol=1e-5)
        differing = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.id != b.id]
        assert all(abs(a.score - b.score) < 1e-5 for a, b in differing)
        known = {match.id: match[1:] for match in ours}
        assert all(match[1:] == known[match.id] for match in theirs if match.id in known)


def test_both_engines_give_the_same_answers(both):
    faiss, milvus, _ = both
    queries = unit(50, 2, clusters=200)
    assert len(milvus) == COUNT and milvus.width == 512
    same(milvus.find(queries, 10), faiss.find(queries, 10))
    for without in ({"without_identity": ODD, "without_camera": "3"}, {"without_identity": "shoe-7"}):
        found = milvus.find(queries, 10, **without)
        same(found, faiss.find(queries, 10, **without))
        assert not any(match.identity == without["without_identity"] for row in found for match in row)
    for wrong in (queries[:, :100], np.full((1, 512), np.nan)):
        with pytest.raises(UserError, match=r"do not fit|not finite"):
            milvus.find(wrong)


def test_ids_stay_and_a_restart_finds_all(both, features):
    faiss, milvus, uri = both
    gone = [3, 77, COUNT - 1]
    assert [image.path for image in milvus.remove(gone)] == [f"/{n}.png" for n in gone]
    with pytest.raises(UserError, match="no image of the id 77"):
        milvus.remove([5, 77])
    assert len(milvus) == COUNT - 3 and milvus.image_of(77) is None
    milvus.append([GalleryImage("/77.png", "again")], lambda: iter([features[[77]]]), {}, [UNKNOWN])
    milvus.close()
    other = MilvusGallery.open(uri)
    assert len(other) == COUNT - 2 and other.header["embedding"] == faiss.header["embedding"]
    best = other.find(features[[77]], 1)[0][0]
    assert (best.id, best.identity) == (COUNT, "again") and best.score == pytest.approx(1, abs=1e-5)
    listed = list(other.entries())
    assert [id for id, _, _ in listed] == [n for n in range(COUNT + 1) if n not in gone]
    milvus._client = other._client


def test_a_folder_is_followed(gallery, tmp_path):
    """Build, sync and remove by the builder, as for a file."""
    paths, uri = save_pictures(tmp_path / "p", 6), str(tmp_path / "g.db")
    MilvusGallery.create(uri, header_of(gallery.description, IndexOptions(), {})).close()
    open_galleries = []

    def opened():
        open_galleries.append(MilvusGallery.open(uri))
        return open_galleries[-1]

    builder = IndexBuilder(gallery, uri, opened=opened)
    assert builder.add(tmp_path / "p") == 6
    paths[0].unlink()
    save_pictures(tmp_path / "p", 1, first=30)
    assert builder.sync(tmp_path / "p") == (1, 1)
    found = {image.path.rpartition("/")[2]: id for id, image, _ in opened().entries()}
    assert found == {"0001.png": 1, "0002.png": 2, "0003.png": 3, "0004.png": 4, "0005.png": 5, "0030.png": 6}
    assert builder.add(tmp_path / "p") == 0
    for one in open_galleries:
        one.close()


def test_of_several_ranks_the_first_makes_the_collection(gallery, monkeypatch):
    """Another that came later would drop what the first had made, with --overwrite."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import index_net

    made, added = [], []
    monkeypatch.setattr(MilvusGallery, "create", lambda *_, **more: made.append(more) or SimpleNamespace(close=dict))
    args = SimpleNamespace(kind="exact", queries=None, query_weights=None, overwrite=True, uri="http://host")
    for rank in range(2):
        builder = SimpleNamespace(ranks=Ranks(rank, 2), add=added.append)
        index_net.build_in_milvus(args, builder, gallery, "images")
    assert made == [{"overwrite": True}] and added == ["images", "images"]


def test_what_is_not_there_is_named(tmp_path, both):
    with pytest.raises(UserError, match=r"none\.db: holds no gallery gallery; make it with"):
        MilvusGallery.open(str(tmp_path / "none.db"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"gallery\.db holds a collection gallery; add to it, or replace it"):
        MilvusGallery.create(both[2], both[0].header)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: Milvus does not do it"):
        MilvusGallery.open("http://127.0.0.1:9")
