"""The picture of ranked lists: frames by what an entry is, the query at the network's own pixels."""

import itertools

import numpy as np
import pytest
from PIL import Image

from d3still.data import Sample, read_image
from d3still.data.transforms import resize
from d3still.errors import UserError
from d3still.evaluation.lists import Entry, RankedList
from d3still.reporting import pictures
from d3still.reporting.pictures import (
    BORDER,
    EXCLUDED,
    HIT,
    MISS,
    network_view,
    ranked_list_picture,
    save_picture,
    thumbnail,
)

MIN_FRAME = 50  # pixels of a frame's edge; text in the frames' colours is shorter


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("query", (40, 20, 3)), ("wide", (30, 60, 3)), ("tall", (64, 16, 3))):
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(tmp_path / f"{name}.png")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def ranked(files, *kinds):
    entries, rank = [], 0
    for kind in kinds:
        rank += kind != "excluded"
        sample = Sample(files["wide"], 1 if kind != "miss" else 2, 1)
        entries.append(Entry(sample, 0.5, kind != "miss", None if kind == "excluded" else rank))
    return RankedList(Sample(files["query"], 1, 0), 0.25, tuple(entries))


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def frames(picture):
    """Kinds of the frames from left to right, along the row of pixels where the first frames begin."""
    kinds = {rgb(HIT): "hit", rgb(MISS): "miss", rgb(EXCLUDED): "excluded"}
    for row in picture:
        found = [kinds.get(tuple(pixel)) for pixel in row.tolist()]
        if sum(kind is not None for kind in found) > MIN_FRAME:
            return [kind for kind, _ in itertools.groupby(found) if kind is not None]
    return []


def test_frames_tell_hits_misses_and_excluded(files):
    picture = ranked_list_picture([ranked(files, "excluded", "hit", "miss", "hit")], (16, 8))
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert frames(picture) == ["excluded", "hit", "miss", "hit"]


def test_the_query_is_shown_at_the_networks_pixels(files):
    """Every pixel of the network's input is a square of six by six, 96 // 16, without smoothing."""
    sample = Sample(files["query"], 1, 0)
    pixels = resize(read_image(files["query"]), (16, 8))
    assert (np.asarray(network_view(sample, (16, 8))) == pixels.permute(1, 2, 0).numpy()).all()
    picture = ranked_list_picture([ranked(files, "hit")], (16, 8))
    enlarged = pixels.permute(1, 2, 0).numpy().repeat(6, axis=0).repeat(6, axis=1)
    height, width, _ = enlarged.shape
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (height, width))
    places = np.argwhere((windows == enlarged[..., 0]).all(axis=(2, 3)))
    assert len(places) == 1
    top, left = places[0]
    assert (picture[top : top + height, left : left + width] == enlarged).all()


def test_an_excluded_image_is_greyed(files):
    """Inside its frame hardly any colour is left, while a hit keeps its own."""

    def colourful(kind):
        picture = ranked_list_picture([ranked(files, kind)], (16, 8)).astype(int)
        inside = picture[:, 150:240]
        return (inside.max(axis=2) - inside.min(axis=2)).mean()

    assert colourful("excluded") < 0.5 * colourful("hit")


def test_proportions_are_kept_and_boxes_used(files):
    assert thumbnail(Sample(files["tall"], 1, 0), 32).size == (8, 32)
    assert thumbnail(Sample(files["wide"], 1, 0), 30).size == (30, 15)
    assert thumbnail(Sample(files["wide"], 1, 0, box=(0, 0, 10, 20)), 20).size == (10, 20)


def test_lists_stand_below_each_other_and_wrap(files):
    one = ranked_list_picture([ranked(files, *["hit"] * 10)], (16, 8))
    two = ranked_list_picture([ranked(files, *["hit"] * 10)] * 2, (16, 8))
    wrapped = ranked_list_picture([ranked(files, *["hit"] * 11)], (16, 8))
    assert one.shape[1] == two.shape[1] == wrapped.shape[1]
    assert one.shape[0] < wrapped.shape[0] < two.shape[0]


def test_identities_are_called_what_the_user_calls_them(files, monkeypatch):
    written = []
    monkeypatch.setattr(pictures._Sheet, "_write", lambda self, corner, text, *_, **__: written.append(text))
    query, gallery = Sample(files["query"], 8, 0, name="shoe-17"), Sample(files["wide"], 9, 1, name="boot-3")
    ranked_list_picture([RankedList(query, 0.5, (Entry(gallery, 0.9, False, 1),))], (16, 8))
    assert "query.png: identity shoe-17, camera 0, AP 50.00 %" in written and "id boot-3, cam 1" in written


def test_what_cannot_be_read_leaves_an_empty_frame(files, tmp_path, caplog):
    lost = Sample(str(tmp_path / "lost.png"), 1, 0)
    shown = RankedList(lost, float("nan"), (Entry(lost, 0.1, False, 1),))
    with caplog.at_level("WARNING", logger="d3still"):
        picture = ranked_list_picture([shown], (16, 8))
    assert frames(picture) == ["miss"] and "lost.png" in caplog.text


def test_images_above_the_runs_limit_leave_an_empty_frame(files, caplog):
    """The query has 40 × 20 pixels, the gallery image 30 × 60."""
    with caplog.at_level("WARNING", logger="d3still"):
        ranked_list_picture([ranked(files, "hit")], (16, 8), max_pixels=800)
    assert [record.getMessage().split(" has ")[1][:15] for record in caplog.records] == ["60 × 30 pixels,"]


def test_any_name_size_and_length_can_be_drawn(tmp_path):
    """A name of 200 letters with an emoji and a broken byte, a query larger than its cell, an empty list."""
    path = tmp_path / ("ü😀" + "x" * 190 + ".png")
    Image.new("RGB", (300, 200)).save(path)
    sample = Sample(str(path), 1, 0)
    for size in ((256, 128), (1, 1), (97, 97)):
        picture = ranked_list_picture([RankedList(sample, 0.5, ())], size, title="a\nb\udcff")
        assert picture.shape[0] > 100 + 2 * BORDER
    assert ranked_list_picture([], (16, 8)).size


def test_a_picture_that_cannot_be_saved_is_named(tmp_path):
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    save_picture(picture, tmp_path / "new" / "list.png")
    (tmp_path / "file").touch()
    for path in (tmp_path / "list.unknown", tmp_path / "file" / "list.png"):
        with pytest.raises(UserError, match="cannot write"):
            save_picture(picture, path)
