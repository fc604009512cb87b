"""The check of a dataset on disk: what it reports, its contact sheet, and the command's exit status."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from d3still.data import build_dataset
from d3still.data.check import SHEET_COLUMNS, THUMB, check_dataset, contact_sheet, full_name
from tests.data.helpers import save
from tests.data.test_benchmarks import sop_authors, veri_rearranged

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def own(tmp_path):
    for part in ("train", "query", "gallery"):
        for identity in "abcdefghij":
            for camera in (1, 2):
                save(tmp_path / "own" / part / identity / f"_c{camera}.jpg", seed=camera)
    return tmp_path / "own"


def load(root, pattern=r"_c(\d)"):
    return build_dataset("folder", root, camera_pattern=pattern)


def test_a_sound_dataset(own):
    check = check_dataset(load(own))
    assert check.ok
    words = [line.split() for line in check.lines]
    assert ["train", "images", "20"] in words and ["train", "identities", "10"] in words
    assert ["cameras", "2"] in words and ["unreadable", "0"] in words
    text = "\n".join(check.lines)
    assert all(part in text for part in ("2 to 2, median 2 (train)", "60   of 60", "24 × 20 to 24 × 20"))
    assert len(check.lines) < 25  # one screen


def test_unreadable_files_are_counted_and_named(own):
    (own / "query" / "c" / "_c1.jpg").write_bytes(b"")
    (own / "train" / "d" / "_c2.jpg").write_bytes(b"not an image")
    check = check_dataset(load(own))
    assert not check.ok and len(check.problems) == 2
    assert any("query/c/_c1.jpg is empty" in problem for problem in check.problems)
    for identity in "abcdefghij":
        (own / "gallery" / identity / "_c1.jpg").write_bytes(b"")
    check = check_dataset(load(own))
    assert len(check.problems) == 11 and check.problems[-1] == "… and 2 more that cannot be read"


def test_one_camera_for_everything_is_said_with_the_way_out(own):
    check = check_dataset(load(own, r"(_)"))
    assert any("TEST.EXCLUDE_SAME_CAMERA: False" in problem for problem in check.problems)


def test_counts_beside_the_published_ones(tmp_path):
    check = check_dataset(build_dataset("SOP", sop_authors(tmp_path)))
    assert any(line.startswith("train images") and "DIFFERS  published 59,551" in line for line in check.lines)
    assert "3 train images, published: 59,551" in check.problems


def test_a_fast_check_opens_a_sample(own, monkeypatch):
    monkeypatch.setattr("d3still.data.check.FAST_SAMPLE", 7)
    opened = next(line for line in check_dataset(load(own), fast=True).lines if line.startswith("files opened"))
    assert opened.split() == ["files", "opened", "7", "of", "60"]


def test_contact_sheet(own):
    (own / "train" / "a" / "_c1.jpg").write_bytes(b"")
    path = own.parent / "new" / "sheet.png"
    contact_sheet(load(own), path)
    with Image.open(path) as sheet:
        assert sheet.width == SHEET_COLUMNS * THUMB
        assert sheet.getpixel((5, 60)) == (128, 128, 128)  # the unreadable one
        assert len(sheet.getcolors(10**6)) > 100


def test_short_names():
    assert full_name("veri") == "VeRi776" and full_name("CUB") == "CUB200"
    assert full_name("msmt17") == "MSMT17" and full_name("Folder") == "folder"
    assert full_name("nothing") == "nothing"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, arguments)])
    monkeypatch.syspath_prepend(TOOLS)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOLS / "check_dataset.py"), run_name="__main__")
    return caught.value.code


def test_the_command(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "folder", "--root", own, "--camera-pattern", r"_c(\d)") == 0
    assert "all is well" in capsys.readouterr().out
    assert (tmp_path / "log" / "check_folder.png").exists()
    veri_rearranged(tmp_path / "VeRi")
    assert run(monkeypatch, "veri", "--root", tmp_path, "--sheet", tmp_path / "s.png") == 1
    assert "problem: 3 train images, published: 37,746 or 37,778" in capsys.readouterr().out
    assert run(monkeypatch, "cub", "--root", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: CUB200") and error.count("\n") == 1
    assert run(monkeypatch, "vari", "--root", tmp_path) == 2
    assert "'vari' is not a known dataset" in capsys.readouterr().err
