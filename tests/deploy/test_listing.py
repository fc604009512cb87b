"""Which images a folder, a table or a list means."""

from dataclasses import replace
from pathlib import Path

import pytest

from d3still.data import Sample
from d3still.deploy.listing import GalleryImage, list_images, run_dataset
from d3still.deploy.network_files import open_network
from d3still.errors import UserError
from tests.deploy.small import make_config, save_pictures, save_run
from tests.tiny import make_veri


def test_a_folder_with_all_below_it(tmp_path, monkeypatch):
    inner = save_pictures(tmp_path / "b", 2)
    outer = save_pictures(tmp_path / "a" / "x y", 1)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    expected = [str(path) for path in [*outer, *inner]]
    assert [image.path for image in list_images(tmp_path)] == expected
    monkeypatch.chdir(tmp_path / "a")
    assert [image.path for image in list_images("..")] == expected, "the same from anywhere"


def test_a_table(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("﻿Path; identity;split\na b.png;7;gallery\nsub/c.png; blue ;test\nq.png;7;query\n\nd.png;;\n")
    assert list_images(table) == [
        GalleryImage(str(tmp_path / "a b.png"), "7"),
        GalleryImage(str(tmp_path / "sub/c.png"), "blue"),
        GalleryImage(str(tmp_path / "d.png"), None),
    ]
    table.write_text("label\tpath\tsplit\tis_query\tis_gallery\n7\tq.png\tvalidation\tTrue\tFalse\n7\tg.png\tvalidation\t\t1\n")
    assert list_images(table) == [GalleryImage(str(tmp_path / "g.png"), "7")], "open-metric-learning's"
    table.write_text('path\n"with, comma.png"\n')
    assert list_images(str(table)) == [GalleryImage(str(tmp_path / "with, comma.png"))]


def test_a_list(tmp_path):
    sample = Sample(str(tmp_path / "c.png"), 3, 0, (1, 2, 3, 4), "shoe-17")
    listed = list_images([tmp_path / "b.png", str(tmp_path / "a.png"), sample])
    assert [Path(image.path).name for image in listed] == ["b.png", "a.png", "c.png"], "in its own order"
    assert listed[2] == GalleryImage(str(tmp_path / "c.png"), "shoe-17", (1, 2, 3, 4), "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,id\na.png,1\n", r"line 1: no column path"),
        ("path,identity\n,3\n", r"line 2: the path is blank"),
        ("path\na.png\na.png\n", r"a\.png is listed twice"),
        ("path\n./a.png\na.png\n", r"a\.png is listed twice"),
        ("path,split\na.png,train\n", r"lists no image \(of a table with a column split"),
        ("path\n", "lists no image"),
        ("", "no column path"),
        (b"path\n\xff.png\n", "is not UTF-8 text"),
        ("path\na\0.png\n", r"t\.csv: the image .* holds a NUL character"),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        list_images(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_gallery(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    for images, message in [
        (tmp_path / "empty", r"no image \(.*\.jpg.*\) in .*empty; expected the gallery's images"),
        (tmp_path / "nowhere", "no such folder or table; --images takes"),
        (tmp_path / "a.txt", r"is neither a folder nor a \.csv file"),
        ([], "there is no image to index"),
        ([5], "not of int"),
    ]:
        with pytest.raises(UserError, match=message):
            list_images(images)


def test_the_gallery_of_a_run(tmp_path):
    root = make_veri(tmp_path / "VeRi")
    cfg = make_config(DATASETS__NAMES="VeRi776", DATASETS__ROOT_DIR=str(root))
    _, description = open_network(save_run(tmp_path / "last.pth", cfg=cfg))
    names = (root / "name_test.txt").read_text().split()
    gallery = list_images(run_dataset(description).gallery)
    assert sorted(Path(image.path).name for image in gallery) == sorted(names)
    assert {image.identity for image in gallery} == {"11", "12", "13"}


def test_the_dataset_of_a_config_that_names_none(tmp_path):
    _, description = open_network(save_run(tmp_path / "last.pth"))
    for config in ({}, {"DATASETS": {"NAMES": "VeRi776"}}):
        with pytest.raises(UserError, match=r"which dataset the query network .* not known; name the images"):
            run_dataset(replace(description, config=config))
