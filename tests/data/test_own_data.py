"""Anyone's own data: a folder for each identity, or a table."""

from functools import partial

import pytest

from d3still.config import load_config
from d3still.data import build_dataset
from d3still.engine.setup import open_dataset
from d3still.errors import UserError
from tests.data.helpers import save_all
from tests.data.test_benchmarks import rows, write


def own(root, names=("x_cam1.jpg", "y_cam3.png")):
    for part in ("train", "query", "gallery"):
        save_all(root / part, [f"{identity}/{name}" for identity in ("shoe", "hat") for name in names])
    return root


def test_a_folder_for_each_identity(tmp_path):
    data = build_dataset("folder", own(tmp_path))
    assert rows(data.train, tmp_path / "train") == [
        ("hat/x_cam1.jpg", 0, 0), ("hat/y_cam3.png", 0, 1), ("shoe/x_cam1.jpg", 1, 2), ("shoe/y_cam3.png", 1, 3),
    ]  # fmt: skip
    assert data.identity_map == {"hat": 0, "shoe": 1}
    assert [s.identity for s in data.query] == [s.identity for s in data.gallery] == [0, 0, 1, 1]
    cameras = [s.camera for s in data.query + data.gallery]
    assert sorted(cameras) == list(range(8))  # each file its own


@pytest.mark.parametrize(
    ("names", "pattern", "cameras"),
    [
        (("x_cam1.jpg", "y_cam3.png"), r"cam(\d+)", [0, 2]),
        (("x_cam0.jpg", "y_cam3.png"), r"cam(\d+)", [0, 3]),
        (("x_c001.jpg", "y_c001.png"), r"_c(\d{3})", [0, 0]),  # all data from one camera
        (("x_left.jpg", "y_right.png"), r"_(\w+)\.", [0, 1]),
    ],
)
def test_a_pattern_gives_the_camera(tmp_path, names, pattern, cameras):
    data = build_dataset("folder", own(tmp_path / "cam9", names), camera_pattern=pattern)
    assert [s.camera for s in data.gallery] == cameras * 2


@pytest.mark.parametrize(
    ("pattern", "words"),
    [(r"cam(\d", "not a regular expression"), (r"cam\d", "no group"), (r"view(\d)", "finds no camera in the name of")],
)
def test_patterns_that_do_not_work(tmp_path, pattern, words):
    with pytest.raises(UserError, match=words) as caught:
        build_dataset("folder", own(tmp_path), camera_pattern=pattern)
    assert "DATASETS.CAMERA_PATTERN" in str(caught.value)


def test_a_validation_folder_is_what_validation_tests(tmp_path):
    own(tmp_path)
    save_all(tmp_path / "validation", ["cap/a.jpg", "cap/b.jpg"])
    data = build_dataset("folder", tmp_path, split="val")
    assert rows(data.query, tmp_path) == [("validation/cap/a.jpg", 0, 0), ("validation/cap/b.jpg", 0, 1)]
    assert data.gallery == data.query and len(data.train) == 4
    assert len(build_dataset("folder", tmp_path).query) == 4


def test_a_test_folder_is_query_and_gallery(tmp_path):
    save_all(tmp_path, ["train/1/a.jpg", "test/2/a.jpg", "test/2/b.jpg", "test/-1/c.jpg"])
    data = build_dataset("folder", tmp_path)
    assert data.query == data.gallery
    assert [s.identity for s in data.gallery] == [-1, 2, 2]


def test_mistakes_in_folders_are_named(tmp_path):
    own(tmp_path)
    save_all(tmp_path / "train", ["loose.jpg"])
    with pytest.raises(UserError, match=r"loose\.jpg: put each image into a folder named after its identity"):
        build_dataset("folder", tmp_path)
    with pytest.raises(UserError, match=r"shoe/train is missing"):
        build_dataset("folder", tmp_path / "train" / "shoe")


# CSV

TABLE = """path,identity,camera,split
images/a.jpg,shoe,left,train
images/b.jpg,hat,right,train
images/ü c.jpg,cap,left,query
images/d.jpg,cap,right,gallery
"""


def table(root, text=TABLE, encoding="utf-8", name="data.csv"):
    save_all(root / "images", ["a.jpg", "b.jpg", "ü c.jpg", "d.jpg"])
    write(root / name, text, encoding)
    return root


def test_a_table(tmp_path):
    table(tmp_path)
    for root in (tmp_path, tmp_path / "data.csv"):
        data = build_dataset("csv", root)
        assert rows(data.train, tmp_path) == [("images/a.jpg", 1, 0), ("images/b.jpg", 0, 1)]
        assert data.identity_map == {"hat": 0, "shoe": 1}
        assert rows(data.query, tmp_path) == [("images/ü c.jpg", 0, 0)]
        assert rows(data.gallery, tmp_path) == [("images/d.jpg", 0, 1)]


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text, "utf-8-sig"),
        (lambda text: text.replace("\n", "\r\n"), "utf-8"),
        (lambda text: text.replace(",", " , ").replace("path", "Path") + "\n , ,,\n", "utf-8"),
        (lambda text: text.replace(",", ";"), "utf-8"),
        (lambda text: text.replace("images/a.jpg", '"images/a.jpg"').replace("train", "Train"), "utf-8"),
        (lambda text: text.replace(",", "\t"), "utf-8"),
        (lambda text: text.replace(",", "\t").replace("\n", "\r\n"), "utf-16"),  # a spreadsheet's "Unicode text"
        (lambda text: text.replace("images/", "images\\"), "utf-8"),
        (lambda text: text.replace("images/", ".\\images\\").replace("\n", "\r\n"), "utf-8-sig"),
        (lambda text: text.replace("path", "filename").replace("identity", "pid").replace("camera", "camid"), "utf-8"),
        (lambda text: text.replace("path,identity", "Image_Path,Label").replace("split", "set"), "utf-8"),
    ],
    ids=["bom", "crlf", "blanks", "semicolons", "quotes", "tabs", "utf-16", "backslashes", "windows", "re-id", "set"],
)
def test_a_table_as_spreadsheets_write_it(tmp_path, change, encoding):
    expected = build_dataset("csv", table(tmp_path))
    assert build_dataset("csv", table(tmp_path, change(TABLE), encoding)) == expected


def test_numbers_absolute_paths_and_no_cameras(tmp_path):
    text = TABLE.replace("camera,", "").replace(",left", "").replace(",right", "").replace("shoe", "12")
    text = text.replace("hat", "9").replace("cap", "700").replace("images/a.jpg", f"{tmp_path}/images/a.jpg")
    data = build_dataset("csv", table(tmp_path, text))
    assert data.identity_map == {"9": 0, "12": 1}
    assert rows(data.train, tmp_path) == [("images/a.jpg", 1, 0), ("images/b.jpg", 0, 1)]
    assert data.query[0].identity == 700
    assert data.query[0].camera != data.gallery[0].camera


def test_numbered_cameras_and_a_test_split(tmp_path):
    text = "split,camera,identity,path\ntrain,4,1,images/a.jpg\ntest,4,2,images/b.jpg\ntest,,2,images/d.jpg\n"
    data = build_dataset("csv", table(tmp_path, text))
    assert data.query == data.gallery
    assert [s.camera for s in data.query] == [4, 5]  # a blank one is the file's own


OML = """label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2,category
0,images\\a.jpg,train,,,,,,,bag
1,images/b.jpg,train,,,0,4,1,3,bag
2,images/ü c.jpg,validation,True,False,1.0,3.0,0.0,4.0,cap
2,images/d.jpg,validation,1,1,,,,,cap
"""


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_table_of_open_metric_learning(tmp_path, split):
    # its columns: https://open-metric-learning.readthedocs.io, "Dataset's format"; x_1, y_1 is the upper left corner
    data = build_dataset("csv", table(tmp_path, OML), split=split)
    assert rows(data.train, tmp_path) == [("images/a.jpg", 0, 0), ("images/b.jpg", 1, 1)]
    assert [sample.box for sample in data.train] == [None, (0, 1, 4, 3)]
    assert rows(data.query, tmp_path) == [("images/d.jpg", 2, 0), ("images/ü c.jpg", 2, 1)]
    assert rows(data.gallery, tmp_path) == [("images/d.jpg", 2, 0)]
    assert data.query[1].box == (1, 0, 3, 4) and data.query[0].name == "2"


def test_validation_rows_beside_a_test_are_for_validation_alone(tmp_path):
    text = TABLE + "images/a.jpg,scarf,left,validation\nimages/b.jpg,scarf,right,val\n"
    text = text.replace("images/a.jpg,shoe,left,train\n", "")
    assert build_dataset("csv", table(tmp_path, text)).query[0].name == "cap"
    data = build_dataset("csv", tmp_path, split="val")
    assert [(s.name, s.camera) for s in data.query] == [("scarf", 0), ("scarf", 1)] and data.gallery == data.query
    assert [s.name for s in data.train] == ["hat"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("True,False", "False,False", "line 4: an image of split 'validation' is neither is_query nor is_gallery"),
        ("True,False", "Tue,False", "line 4: is_query is 'Tue', neither True nor False"),
        ("0,4,1,3", "0,4,,3", "line 3: the box 0, , 4, 3 is not left, top, right, bottom"),
        ("0,4,1,3", "4,0,1,3", "line 3: the box 4, 1, 0, 3 .* is empty"),
        ("0,4,1,3", "0,1e999,1,3", "line 3: the box 0, 1, 1e999, 3 is not"),
        ("label,path", "label,pid", "line 1: label and pid may each be the identity"),
        ("label,path", "path,path", "line 1: two columns path may each be the path"),
    ],
)
def test_mistakes_in_such_a_table(tmp_path, old, new, words):
    with pytest.raises(UserError, match=rf"data\.csv {words}"):
        build_dataset("csv", table(tmp_path, OML.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("identity,camera,split", "camera", "line 1: no column identity, split"),
        ("images/b.jpg", "images/nope.jpg", "line 3: there is no image .*nope.jpg"),
        ("hat", "", "line 3: the identity is blank"),
        ("right,gallery", "right,galery", "line 5: split 'galery'"),
        ("right,gallery", "right", "line 5: the split is blank"),
        ("right,gallery", "right,gallery,7", "line 5: 5 values for 4 columns"),
        ("images/b.jpg", "images/a.jpg", "line 3: images/a.jpg is in train already, by line 2"),
        ("left,query", "left,train", "no line has the split 'query'"),
        ("shoe", "-1", "junk identity"),
    ],
)
def test_mistakes_in_a_table_name_file_and_line(tmp_path, old, new, words):
    with pytest.raises(UserError, match=words) as caught:
        build_dataset("csv", table(tmp_path, TABLE.replace(old, new)))
    assert "data.csv" in str(caught.value) or "junk" in words


def test_tables_that_cannot_be_read_or_found(tmp_path):
    with pytest.raises(UserError, match="not UTF-8"):
        build_dataset("csv", table(tmp_path, encoding="latin-1"))
    with pytest.raises(UserError, match="line 1: no column path"):
        build_dataset("csv", table(tmp_path, ""))
    table(tmp_path, name="other.csv")
    with pytest.raises(UserError, match=r"several CSV files \(data\.csv, other\.csv\)"):
        build_dataset("csv", tmp_path)
    with pytest.raises(UserError, match="no CSV file"):
        build_dataset("csv", tmp_path / "images")


def test_a_relative_root_is_looked_for_here_then_in_the_repositories(tmp_path, monkeypatch):
    """A folder of that name that lacks the dataset does not hide the one that has it."""
    here, clone, installed = (tmp_path / name for name in ("here", "clone", "installed"))
    for folder in (here, clone, installed):
        folder.mkdir()
    monkeypatch.chdir(here)
    build = partial(build_dataset, "CUB200", "datasets", repositories=[clone, installed])
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value) == (
        "CUB200: datasets does not exist; set DATASETS.ROOT_DIR to the folder with the data; "
        f"looked in {here}/datasets, {clone}/datasets, {installed}/datasets"
    )
    (here / "datasets").mkdir()
    with pytest.raises(UserError, match=rf"CUB200: nothing known in datasets.*looked in .*{clone}/datasets"):
        build()
    for place, number in ((installed, "1_1.jpg"), (clone, "2_1.jpg"), (here, "3_1.jpg")):
        for part in ("train", "test"):
            save_all(place / "datasets/CUB200" / part, [number])
        assert build().query[0].identity == int(number[0])
    with pytest.raises(UserError, match=r"gone does not exist; set DATASETS\.ROOT_DIR to the folder with the data$"):
        build_dataset("CUB200", tmp_path / "gone", repositories=[clone])


def test_the_emoji_set_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "x.yaml").write_text("DATASETS: {NAMES: emoji}\n")
    assert len(open_dataset(load_config("x.yaml")).train) > 0
