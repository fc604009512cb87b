"""CUB-200-2011 (Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011)."""

from __future__ import annotations

from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset
from d3still.data.datasets.files import read_lines, require_child, require_files
from d3still.data.datasets.layout import Layout, Parts, load_benchmark, names_with_number, rearranged
from d3still.errors import UserError

NAME = "CUB200"
FOLDERS = ("CUB_200_2011", "CUB200", "CUB-200-2011", "CUB200_2011", "CUB")
TRAIN_CLASSES = 100  # retrieval trains on classes 1-100 and tests on 101-200
PUBLISHED = {
    "train images": (5864,),
    "train identities": (100,),
    "query images": (5924,),
    "query identities": (100,),
    "gallery images": (5924,),
    "gallery identities": (100,),
}


@DATASETS.register(NAME)
def cub200(root: Path) -> RetrievalDataset:
    """CUB-200-2011: birds; each test image is a query and the others its gallery."""
    authors = Layout(("images.txt", "image_class_labels.txt", "images"), _read_authors)
    names = names_with_number(r"(-?\d+)_c?(\d+)")
    return load_benchmark(NAME, root, FOLDERS, [authors, *rearranged(NAME, names)], PUBLISHED)


def _read_authors(folder: Path) -> Parts:
    images, image_list = require_child(folder, "images"), require_child(folder, "images.txt")
    label_list = require_child(folder, "image_class_labels.txt")
    paths, labels = _by_image(image_list), _by_image(label_list)
    if paths.keys() != labels.keys():
        differing = sorted(paths.keys() ^ labels.keys())
        raise UserError(
            f"{NAME}: {image_list} and {label_list.name} do not list the same images; first: {differing[0]}"
        )
    train, test = [], []
    for image, path in paths.items():
        if not labels[image].isdecimal():
            raise UserError(f"{NAME}: {label_list} gives image {image} the class '{labels[image]}', no number")
        record = Record(str(images / path), int(labels[image]))
        (train if int(labels[image]) <= TRAIN_CLASSES else test).append(record)
    require_files(NAME, [record.path for record in train + test], image_list)
    return Parts(train, test, test)


def _by_image(path: Path) -> dict[str, str]:
    """Lines of an image number and what belongs to it."""
    values: dict[str, str] = {}
    for number, line in read_lines(path):
        image, _, value = line.partition(" ")
        if not value or image in values:
            raise UserError(f"{NAME}: {path} line {number} is not 'IMAGE VALUE' of a new image: {line}")
        values[image] = value.strip()
    return values
