"""MSMT17 (Wei et al., "Person transfer GAN to bridge domain gap for person re-identification", 2018)."""

from __future__ import annotations

from pathlib import Path

from d3still.data.datasets.base import DATASETS, RetrievalDataset
from d3still.data.datasets.files import child, read_lines, require_child, require_files
from d3still.data.datasets.layout import Layout, Parts, load_benchmark, names_with_camera, rearranged
from d3still.errors import UserError
from d3still.text import some

NAME = "MSMT17"
FOLDERS = ("MSMT17", "MSMT17_V1", "MSMT17_V2")
PUBLISHED = {
    "train images": (32621,),
    "train identities": (1041,),
    "query images": (11659,),
    "query identities": (3060,),
    "gallery images": (82161,),
    "gallery identities": (3060,),
    "cameras": (15,),
}
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")

# The authors' 0000_000_01_0303morning_0008_0.jpg holds identity, image, camera; D3Still's 0042_c3_….jpg.
_read_names = names_with_camera(r"(-?\d+)_c(\d+)", r"(-?\d+)_\d+_(\d+)_")


@DATASETS.register(NAME)
def msmt17(root: Path) -> RetrievalDataset:
    """MSMT17: pedestrians, 15 cameras, V1 or V2 as distributed, or train/ query/ gallery/.

    The training set is list_train and list_val together. Identity 0 is an ordinary one.
    """
    authors = [
        Layout(("mask_train_v2", "mask_test_v2", *LISTS), _read_authors),
        Layout(("train", "test", *LISTS), _read_authors),
    ]
    return load_benchmark(NAME, root, FOLDERS, [*authors, *rearranged(NAME, _read_names)], PUBLISHED)


def _read_authors(folder: Path) -> Parts:
    train = child(folder, "mask_train_v2") or require_child(folder, "train")
    test = child(folder, "mask_test_v2") or require_child(folder, "test")
    parts, notes = [], []
    for names, images in ((LISTS[:2], train), (LISTS[2:3], test), (LISTS[3:], test)):
        lists = [_listed(require_child(folder, name), images) for name in names]
        parts.append({path: identity for listed in lists for path, identity in listed.items()})
    records = _read_names(NAME, [list(part) for part in parts])
    for part, listed in zip((records.train, records.query, records.gallery), parts, strict=True):
        other = [record.path for record in part if record.identity != listed[record.path]]
        if other:
            notes.append(f"the lists give {some(other)} another identity than the names, which count")
    records.notes.extend(notes)
    return records


def _listed(list_file: Path, images: Path) -> dict[str, int]:
    """From lines of an image's path, which may hold blanks, and its identity."""
    listed: dict[str, int] = {}
    for number, line in read_lines(list_file):
        path, _, identity = line.rpartition(" ")
        if not path or not identity.isdecimal():
            raise UserError(f"{NAME}: {list_file} line {number} is not 'PATH IDENTITY': {line}")
        listed[str(images / path.strip())] = int(identity)
    require_files(NAME, listed, list_file)
    return listed
