"""The five benchmarks, in their authors' form and rearranged, as small folders made here."""

import shutil
from pathlib import Path

import pytest

from d3still.data import build_dataset
from d3still.errors import UserError
from tests.data.helpers import save_all

VERI_TRAIN = ["0002_c002_00030600_0.jpg", "0001_c001_00016450_0.jpg", "0776_c020_00000001_0.jpg"]
VERI_QUERY, VERI_TEST = ["0007_c001_1_0.jpg"], ["0007_c001_1_0.jpg", "0007_c003_2_0.jpg", "0009_c003_3_0.jpg"]


def rows(part, root):
    """(path below root, identity, camera) of each sample."""
    return [(Path(s.path).relative_to(root).as_posix(), s.identity, s.camera) for s in part]


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def lines(*items):
    return "\n".join(items) + "\n"


# VeRi-776


def veri_authors(root):
    for part, names in (("train", VERI_TRAIN), ("query", VERI_QUERY), ("test", VERI_TEST)):
        save_all(root / f"image_{part}", names)
        write(root / f"name_{part}.txt", "\r\n".join(names) + "\r\n\r\n")
    items = "".join(
        f'<Item imageName="{name}" vehicleID="{name[:4]}" cameraID="{name[5:9]}" colorID="1" typeID="4"/>\n'
        for name in VERI_TRAIN
    )
    xml = f'<?xml version="1.0" encoding="gb2312"?>\n<!-- 车辆 -->\n<TrainingImages>\n<Items>\n{items}</Items>\n'
    write(root / "train_label.xml", xml + "</TrainingImages>\n", "gb2312")
    return root


def veri_rearranged(root):
    for part, names in (("train", VERI_TRAIN), ("query", VERI_QUERY), ("gallery", VERI_TEST)):
        save_all(root / part, names)
    return root


@pytest.mark.parametrize(
    ("make", "folders"),
    [(veri_authors, ("image_train", "image_query", "image_test")), (veri_rearranged, ("train", "query", "gallery"))],
)
def test_veri(tmp_path, make, folders):
    data = build_dataset("VeRi776", make(tmp_path / "0042_c3" / "VeRi"))  # a folder that looks like a name
    root = tmp_path / "0042_c3" / "VeRi"
    train, query, gallery = folders
    assert rows(data.train, root) == [
        (f"{train}/0001_c001_00016450_0.jpg", 0, 0),
        (f"{train}/0002_c002_00030600_0.jpg", 1, 1),
        (f"{train}/0776_c020_00000001_0.jpg", 2, 19),
    ]
    assert data.identity_map == {"1": 0, "2": 1, "776": 2}
    assert rows(data.query, root) == [(f"{query}/0007_c001_1_0.jpg", 7, 0)]
    assert rows(data.gallery, root) == [
        (f"{gallery}/0007_c001_1_0.jpg", 7, 0),
        (f"{gallery}/0007_c003_2_0.jpg", 7, 2),
        (f"{gallery}/0009_c003_3_0.jpg", 9, 2),
    ]
    assert "3 train images, published: 37,746 or 37,778" in data.notes


def test_veri_uses_the_list_then_the_xml_then_the_folder(tmp_path):
    root = veri_authors(tmp_path)
    save_all(root / "image_train", ["0003_c004_5_0.jpg"])  # listed nowhere
    assert len(build_dataset("VeRi776", root).train) == 3
    (root / "name_train.txt").write_text(lines(*VERI_TRAIN[:2]))
    data = build_dataset("VeRi776", root)
    assert len(data.train) == 2
    assert any("differ in 1 images" in note for note in data.notes)
    (root / "name_train.txt").unlink()
    assert len(build_dataset("VeRi776", root).train) == 3
    (root / "train_label.xml").unlink()
    assert len(build_dataset("VeRi776", root).train) == 4


def test_veri_camera_zero_means_that_names_count_from_zero(tmp_path):
    root = veri_rearranged(tmp_path)
    save_all(root / "query", ["0009_c000_4_0.jpg"])
    data = build_dataset("VeRi776", root)
    assert [s.camera for s in data.query] == [1, 0]
    assert [s.camera for s in data.gallery] == [1, 3, 3]


def test_junk_stays_minus_one_in_the_gallery(tmp_path):
    root = veri_rearranged(tmp_path)
    save_all(root / "gallery", ["-1_c002_4_0.jpg"])
    assert (root / "gallery" / "-1_c002_4_0.jpg").exists()
    assert rows(build_dataset("VeRi776", root).gallery, root)[0] == ("gallery/-1_c002_4_0.jpg", -1, 1)


# MSMT17

MSMT_LISTS = {
    "train": [("0000/0000_000_01_0303morning_0008_0.jpg", 0), ("0001/0001_004_15_0303noon_0001_1 a.jpg", 1)],
    "val": [("0000/0000_001_02_0303morning_0009_0.jpg", 0), ("0005/0005_000_03_0303noon_0001_1.jpg", 5)],
    "query": [("0000/0000_000_01_0302noon_0001_0.jpg", 0)],
    "gallery": [("0000/0000_001_04_0302noon_0002_0.jpg", 0), ("0003/0003_000_15_0302noon_0002_0.jpg", 3)],
}


def msmt_authors(root, train="train", test="test"):
    for name, entries in MSMT_LISTS.items():
        save_all(root / (train if name in ("train", "val") else test), [path for path, _ in entries])
        write(root / f"list_{name}.txt", lines(*(f"{path} {identity}" for path, identity in entries)))
    return root


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2"), ("msmt17", "train", "test")],
)
def test_msmt17_of_its_authors(tmp_path, folder, train, test):
    root = msmt_authors(tmp_path / folder, train, test)
    for given in (root, tmp_path):
        data = build_dataset("MSMT17", given)
        assert [(identity, camera) for _, identity, camera in rows(data.train, root)] == [
            (0, 0), (0, 1), (1, 14), (2, 2),
        ]  # fmt: skip
        assert rows(data.train, root)[2][0] == f"{train}/0001/0001_004_15_0303noon_0001_1 a.jpg"
        assert data.identity_map == {"0": 0, "1": 1, "5": 2}
        assert rows(data.query, root) == [(f"{test}/0000/0000_000_01_0302noon_0001_0.jpg", 0, 0)]
        assert [(identity, camera) for _, identity, camera in rows(data.gallery, root)] == [(0, 3), (3, 14)]


def test_msmt17_rearranged(tmp_path):
    save_all(tmp_path / "train", ["0042_c3_0001.jpg", "0007_c15_0002.jpg"])
    save_all(tmp_path / "query", ["0000_c1_0001.jpg"])
    save_all(tmp_path / "gallery", ["0000_c3_0001.jpg", "0000_002_04_0302noon_0002_0.jpg"])  # original names too
    data = build_dataset("MSMT17", tmp_path)
    assert rows(data.train, tmp_path) == [("train/0007_c15_0002.jpg", 0, 14), ("train/0042_c3_0001.jpg", 1, 2)]
    assert [(s.identity, s.camera) for s in data.query + data.gallery] == [(0, 0), (0, 3), (0, 2)]


def test_msmt17_says_when_lists_and_names_disagree(tmp_path):
    root = msmt_authors(tmp_path)
    path = MSMT_LISTS["query"][0][0]
    write(root / "list_query.txt", lines(f"{path} 77"))
    data = build_dataset("MSMT17", root)
    assert data.query[0].identity == 0
    assert any("another identity" in note and path in note for note in data.notes)
    write(root / "list_query.txt", lines(f"{path} zero"))
    with pytest.raises(UserError, match=r"list_query\.txt line 1"):
        build_dataset("MSMT17", root)


# CUB-200-2011


def cub_authors(root):
    files = {
        3: ("001.Albatross/B_0046_18.jpg", 1), 1: ("001.Albatross/A_0002_55.jpg", 1),
        7: ("100.Pelican/C_0001_01.jpg", 100), 8: ("101.White Pelican/D_0001_02.jpg", 101),
        9: ("101.White Pelican/E_0002_03.jpg", 101), 12: ("200.Yellowthroat/F_0001_04.jpg", 200),
    }  # fmt: skip
    save_all(root / "images", [path for path, _ in files.values()])
    write(root / "images.txt", lines(*(f"{n} {path}" for n, (path, _) in files.items())))
    write(root / "image_class_labels.txt", lines(*(f"{n} {label}" for n, (_, label) in files.items())))
    return root


def test_cub_of_its_authors(tmp_path):
    root = cub_authors(tmp_path / "CUB_200_2011")
    for given in (root, tmp_path):
        data = build_dataset("CUB200", given)
        assert rows(data.train, root / "images") == [
            ("001.Albatross/A_0002_55.jpg", 0, 0),
            ("001.Albatross/B_0046_18.jpg", 0, 1),
            ("100.Pelican/C_0001_01.jpg", 1, 2),
        ]
        assert [s.identity for s in data.query] == [101, 101, 200]
        assert data.query == data.gallery
        assert len({s.camera for s in data.query}) == 3


def test_cub_lists_that_do_not_fit(tmp_path):
    root = cub_authors(tmp_path)
    write(root / "image_class_labels.txt", lines("1 1", "3 1", "7 100", "8 101", "9 101"))
    with pytest.raises(UserError, match=r"do not list the same images; first: 12"):
        build_dataset("CUB200", root)
    write(root / "image_class_labels.txt", lines("1 1", "1 2"))
    with pytest.raises(UserError, match=r"image_class_labels\.txt line 2"):
        build_dataset("CUB200", root)


# Stanford Online Products


def sop_authors(root):
    train = ["1 1 1 bicycle_final/111085122871_0.JPG", "2 1 1 bicycle_final/111085122871_1.JPG",
             "3 11318 2 cabinet_final/2_0.JPG"]  # fmt: skip
    test = ["59552 11319 1 bicycle_final/3_0.JPG", "59553 11319 1 bicycle_final/3_1.JPG",
            "59554 11320 2 cabinet_final/4_0.JPG"]  # fmt: skip
    header = "image_id class_id super_class_id path"
    write(root / "Ebay_train.txt", lines(header, *train))
    write(root / "Ebay_test.txt", lines(header, *test))
    save_all(root, [line.split()[3] for line in train + test])
    return root


def test_sop_of_its_authors(tmp_path):
    root = sop_authors(tmp_path / "Stanford_Online_Products")
    for given in (root, tmp_path):
        data = build_dataset("SOP", given)
        assert [(s.identity) for s in data.train] == [0, 0, 1]
        assert data.identity_map == {"1": 0, "11318": 1}
        assert rows(data.query, root) == [
            ("bicycle_final/3_0.JPG", 11319, 0),
            ("bicycle_final/3_1.JPG", 11319, 1),
            ("cabinet_final/4_0.JPG", 11320, 2),
        ]
        assert data.gallery == data.query


def test_sop_with_a_broken_line(tmp_path):
    root = sop_authors(tmp_path)
    write(root / "Ebay_test.txt", lines("image_id class_id super_class_id path", "59552 11319 1"))
    with pytest.raises(UserError, match=r"Ebay_test\.txt line 2"):
        build_dataset("SOP", root)


@pytest.mark.parametrize("name", ["CUB200", "SOP"])
def test_cub_and_sop_rearranged(tmp_path, name):
    save_all(tmp_path / "train", ["12_345.jpg", "3_1.jpg", "12_346.JPG"])
    save_all(tmp_path / "test", ["101_400.jpg", "101_401.jpg", "102_402.jpg"])
    data = build_dataset(name, tmp_path)
    assert rows(data.train, tmp_path) == [
        ("train/12_345.jpg", 1, 345), ("train/12_346.JPG", 1, 346), ("train/3_1.jpg", 0, 1),
    ]  # fmt: skip
    expected = [(101, 400), (101, 401), (102, 402)]
    assert [(s.identity, s.camera) for s in data.query] == expected
    assert data.query == data.gallery


@pytest.mark.parametrize("parts", [("test",), ("query", "gallery")])
def test_numbers_that_begin_anew_for_each_identity_still_tell_files_apart(tmp_path, parts):
    # The image itself, and nothing else, must share the query's identity and camera.
    save_all(tmp_path / "train", ["1_1.jpg"])
    for part in parts:
        save_all(tmp_path / part, ["101_1.jpg", "101_2.jpg", "102_1.jpg", "102_1_b.jpg"])
    data = build_dataset("CUB200", tmp_path)
    for query in data.query:
        same = [g for g in data.gallery if (g.identity, g.camera) == (query.identity, query.camera)]
        assert [Path(g.path).name for g in same] == [Path(query.path).name]


# In-Shop


def inshop_authors(root, list_folder="Eval", image_folder="Img"):
    entries = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000001/02_1_front.jpg", "id_00000001", "query"),
        ("img/WOMEN/Dresses/id_00000001/02_2_side.jpg", "id_00000001", "gallery"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "gallery"),
        ("img/MEN/Denim/id_00000090/01_1_front.jpg", "id_00000090", "train"),
    ]
    save_all(root / image_folder, [path for path, _, _ in entries])
    table = [f"{path}   {item} {part}" for path, item, part in entries]
    header = "image_name item_id evaluation_status"
    write(root / list_folder / "list_eval_partition.txt", lines("5", header, *table))
    boxes = [f"{path} 1 1 00{n} 001 3 004" for n, (path, _, _) in enumerate(entries)]
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    write(root / list_folder / "list_bbox_inshop.txt", lines("5", header, *boxes))
    return root


@pytest.mark.parametrize(("list_folder", "image_folder"), [("Eval", "Img"), ("Anno", "Img"), ("", "")])
def test_inshop_of_its_authors(tmp_path, list_folder, image_folder):
    root = inshop_authors(tmp_path / "In-shop Clothes Retrieval Benchmark", list_folder, image_folder)
    for given in (root, tmp_path):
        data = build_dataset("InShop", given)
        assert [(s.identity, s.camera) for s in data.train] == [(1, 1), (0, 1)]
        assert data.identity_map == {"2": 0, "90": 1}
        below = root / image_folder / "img"
        assert rows(data.query, below) == [("WOMEN/Dresses/id_00000001/02_1_front.jpg", 1, 0)]
        assert [(s.identity, s.camera) for s in data.gallery] == [(80, 1), (1, 1)]
        assert all(s.box is None for s in data.train)


def test_inshop_cut_to_its_boxes(tmp_path):
    root = inshop_authors(tmp_path)
    data = build_dataset("InShopCropped", root)
    assert [s.box for s in data.gallery] == [(3, 1, 3, 4), (2, 1, 3, 4)]
    box_file = root / "Eval" / "list_bbox_inshop.txt"
    box_file.write_text(box_file.read_text().replace("000 001 3 004", "zero 001 3 004"))
    with pytest.raises(UserError, match=r"list_bbox_inshop\.txt line 3"):
        build_dataset("InShopCropped", root)
    box_file.write_text(lines(*box_file.read_text().splitlines()[3:]))
    with pytest.raises(UserError, match=r"no box for .*id_00000002"):
        build_dataset("InShopCropped", root)
    box_file.unlink()
    with pytest.raises(UserError, match=r"list_bbox_inshop\.txt is missing"):
        build_dataset("InShopCropped", root)


def test_inshop_rearranged(tmp_path):
    for part, names in (("train", ["3_1.jpg", "20_2.jpg"]), ("query", ["0007_3.jpg"]), ("gallery", ["0007_4.jpg"])):
        save_all(tmp_path / part, names)
    data = build_dataset("InShop", tmp_path)
    assert data.identity_map == {"3": 0, "20": 1}
    assert rows(data.query, tmp_path) == [("query/0007_3.jpg", 7, 0)]
    assert rows(data.gallery, tmp_path) == [("gallery/0007_4.jpg", 7, 1)]


def test_inshop_with_a_broken_line(tmp_path):
    root = inshop_authors(tmp_path)
    list_file = root / "Eval" / "list_eval_partition.txt"
    list_file.write_text(list_file.read_text().replace("id_00000080 gallery", "id_00000080 galery"))
    with pytest.raises(UserError, match=r"list_eval_partition\.txt line 6"):
        build_dataset("InShop", root)


# What all have in common

MAKERS = {
    "VeRi776": (veri_authors, "VeRi776", "image_train"),
    "MSMT17": (msmt_authors, "MSMT17_V1", "train"),
    "CUB200": (cub_authors, "CUB_200_2011", "images"),
    "SOP": (sop_authors, "Stanford_Online_Products", "bicycle_final"),
    "InShop": (inshop_authors, "InShop", "Img"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_listed_images_that_are_not_there_are_named(tmp_path, name):
    make, _, images = MAKERS[name]
    root = make(tmp_path)
    lost = sorted(path for path in (root / images).rglob("*") if path.is_file())[0]
    lost.unlink()
    with pytest.raises(UserError) as caught:
        build_dataset(name, root)
    assert f"lists 1 images that are not there: {lost}" in str(caught.value)
    shutil.rmtree(root / images)
    with pytest.raises(UserError):
        build_dataset(name, root)


@pytest.mark.parametrize("name", MAKERS)
def test_folder_names_in_any_case_and_one_level_deeper(tmp_path, name):
    make, folder, _ = MAKERS[name]
    expected = build_dataset(name, make(tmp_path / "plain"))
    make(tmp_path / "outer" / folder.upper() / folder.lower())
    found = build_dataset(name, tmp_path / "outer")
    assert [s.identity for s in found.gallery] == [s.identity for s in expected.gallery]
    assert found.counts() == expected.counts()


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_there_says_what_was_expected(tmp_path, name):
    with pytest.raises(UserError) as caught:
        build_dataset(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "datasets/README.md" in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_names_that_do_not_fit_are_listed_and_other_files_ignored(tmp_path, name):
    good = "0001_c001_1.jpg" if name in ("VeRi776", "MSMT17") else "1_1.jpg"
    for part in ("train", "query", "gallery"):
        save_all(tmp_path / part, [good])
        (tmp_path / part / "Thumbs.db").write_bytes(b"x")
        (tmp_path / part / "._0001_c001_1.jpg").write_bytes(b"x")
    assert len(build_dataset(name, tmp_path).train) == 1
    save_all(tmp_path / "gallery", ["holiday.jpg", "beach.jpg"])
    with pytest.raises(UserError, match=r"2 file names .*beach\.jpg, .*holiday\.jpg"):
        build_dataset(name, tmp_path)


def test_a_part_without_images_is_shown(tmp_path):
    for part in ("train", "query", "gallery"):
        save_all(tmp_path / part, ["0001_c001_1.jpg"])
    (tmp_path / "query" / "0001_c001_1.jpg").unlink()
    with pytest.raises(UserError, match=r"no image \(.*\.jpg.*\) in .*query; expected"):
        build_dataset("VeRi776", tmp_path)
