"""The embedded icons set: what issue 20 asks of it. How embedded sets are unpacked is tested with the emoji set."""

import collections
import importlib.util
import io
import json
import re
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from d3still.data import build_dataset

EMBEDDED = Path(__file__).parents[2] / "datasets" / "icons"
FREE = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0"}


def identity(sample):
    return Path(sample.path).name.split("_")[0]


@pytest.fixture(scope="module")
def contents():
    with zipfile.ZipFile(EMBEDDED / "icons.zip") as source:
        return {name: source.read(name) for name in source.namelist()}


@pytest.fixture(scope="module")
def for_test():
    return build_dataset("icons", EMBEDDED)


@pytest.fixture(scope="module")
def for_val():
    return build_dataset("icons", EMBEDDED, split="val")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_icons", EMBEDDED / "make_icons.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_about_a_thousand_identities_and_eight_thousand_images(contents):
    sizes = collections.Counter(name.split("_")[0] for name in contents)
    assert 900 <= len(sizes) <= 1100 and 7000 <= len(contents) <= 9000
    assert min(sizes.values()) >= 5, "an identity is drawn by at least five sets"
    assert len({(name.split("_")[0], name.split("_")[1]) for name in contents}) == len(contents), "once by each"
    assert (EMBEDDED / "icons.zip").stat().st_size < 12e6


def test_half_of_the_identities_train_and_none_is_in_two_parts(contents, for_test, for_val):
    train, test = ({identity(s) for s in part} for part in (for_test.train, [*for_test.query, *for_test.gallery]))
    everything = {name.split("_")[0] for name in contents}
    assert train.isdisjoint(test) and train | test == everything and len(train) == len(everything) // 2
    tuned = {identity(s) for s in (*for_val.query, *for_val.gallery)}
    assert {identity(s) for s in for_val.train} == train - tuned and tuned < train
    assert len(tuned) == round(0.1 * len(train))
    paths = [s.path for part in (for_test.train, for_test.query, for_test.gallery) for s in part]
    assert len(set(paths)) == len(paths) == len(contents)


@pytest.mark.parametrize("split", ["for_test", "for_val"])
def test_two_queries_an_identity_each_with_a_match_by_another_set(split, request):
    dataset = request.getfixturevalue(split)
    assert set(collections.Counter(s.identity for s in dataset.query).values()) == {2}
    cameras = collections.defaultdict(set)
    for sample in dataset.gallery:
        cameras[sample.identity].add(sample.camera)
    assert all(cameras[query.identity] - {query.camera} for query in dataset.query)


def test_every_image_is_lossless_webp_of_96_pixels_and_none_is_blank(contents):
    for name, content in contents.items():
        assert content[:4] + content[8:16] == b"RIFFWEBPVP8L", name
        with Image.open(io.BytesIO(content)) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB") and len(image.getcolors(96 * 96)) > 1, name


def test_no_near_duplicates_are_left(maker, contents):
    names = sorted(contents)[:600]
    assert maker.own_drawings({name: contents[name] for name in names}).keys() <= set(names)
    shapes = {name: maker.shape(contents[name]) for name in names}
    for one, other in pairwise(names):
        if one.split("_")[0] == other.split("_")[0]:
            assert 1 - shapes[one] @ shapes[other] > maker.NEAR_DUPLICATE


def drawing(ink, box, shape="ellipse"):
    image = Image.new("RGB", (96, 96), (255, 255, 255))
    getattr(ImageDraw.Draw(image), shape)(box, outline=(ink,) * 3, width=6)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


def test_a_near_duplicate_is_the_same_drawing_wherever_and_however_large(maker):
    """A circle moved and scaled is one, a rectangle another; with too few left the name goes."""
    boxes = [(10, 10, 80, 80), (20, 22, 82, 84), (5, 30, 90, 60), (30, 5, 60, 90)]
    first = {f"disc_c{n:03d}_s.webp": drawing(0, box) for n, box in enumerate(boxes)}
    assert 1 - maker.shape(first["disc_c000_s.webp"]) @ maker.shape(first["disc_c001_s.webp"]) < 0.1
    assert 1 - maker.shape(first["disc_c000_s.webp"]) @ maker.shape(drawing(0, boxes[0], "rectangle")) > 0.1
    assert maker.own_drawings(first) == {}
    assert np.linalg.norm(maker.shape(drawing(255, boxes[0]))) == 0, "nothing drawn"


def test_an_identity_is_the_words_of_a_name_in_any_order(maker):
    assert maker.identity_of("minus-circle") == maker.identity_of("circle-minus") == "circle-minus"
    plain = {icon_set.name: icon_set.plain for icon_set in maker.SETS}
    assert re.fullmatch(plain["fluent"], "arrow-down-24-regular")[1] == "arrow-down"
    assert not re.fullmatch(plain["fluent"], "arrow-down-24-filled")
    assert re.fullmatch(plain["ph"], "house") and not re.fullmatch(plain["ph"], "house-bold")
    assert re.fullmatch(plain["hugeicons"], "home-01")[1] == "home"


def test_the_stored_split_is_the_seeds(maker, contents):
    assert maker.split_of(list(contents)) == json.loads((EMBEDDED / "split.json").read_text(encoding="utf-8"))


def test_every_set_has_its_author_a_free_licence_and_its_version(maker, contents):
    text = (EMBEDDED / "LICENSES.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `\*_(c\d{3}_[a-z0-9-]+)\.webp` (\|.*)$", text, flags=re.MULTILINE))
    assert {"_".join(Path(name).stem.split("_")[1:]) for name in contents} <= set(rows)
    packages = (EMBEDDED / "packages.txt").read_text().split()
    for camera, icon_set in enumerate(maker.SETS, start=1):
        row = rows[f"c{camera:03d}_{icon_set.name}"]
        assert f"`@iconify-json/{icon_set.name}` {icon_set.version}" in row
        licence, path = re.search(r"\| (\S+) \| \[[^]]+\]\(([^)]+)\) \|$", row).groups()
        assert licence in FREE and (EMBEDDED / path).stat().st_size > 1000
        assert f"{icon_set.name}@{icon_set.version}" in packages
