"""Stanford Online Products (Song et al., "Deep metric learning via lifted structured feature embedding",
2016)."""

from __future__ import annotations

from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset
from d3still.data.datasets.files import read_lines, require_child, require_files
from d3still.data.datasets.layout import Layout, Parts, load_benchmark, names_with_number, rearranged
from d3still.errors import UserError

NAME = "SOP"
FOLDERS = ("Stanford_Online_Products", "SOP", "Stanford-Online-Products")
PUBLISHED = {
    "train images": (59551,),
    "train identities": (11318,),
    "query images": (60502,),
    "query identities": (11316,),
    "gallery images": (60502,),
    "gallery identities": (11316,),
}
_COLUMNS = 4  # image_id class_id super_class_id path


@DATASETS.register(NAME)
def sop(root: Path) -> RetrievalDataset:
    """Stanford Online Products; each test image is a query and the others its gallery."""
    authors = Layout(("Ebay_train.txt", "Ebay_test.txt"), _read_authors)
    names = names_with_number(r"(-?\d+)_c?(\d+)")
    return load_benchmark(NAME, root, FOLDERS, [authors, *rearranged(NAME, names)], PUBLISHED)


def _read_authors(folder: Path) -> Parts:
    train = _listed(require_child(folder, "Ebay_train.txt"))
    test = _listed(require_child(folder, "Ebay_test.txt"))
    return Parts(train, test, test)


def _listed(list_file: Path) -> list[Record]:
    records = []
    for number, line in read_lines(list_file):
        fields = line.split(maxsplit=_COLUMNS - 1)
        if fields[0] == "image_id":
            continue
        if len(fields) < _COLUMNS or not fields[1].isdecimal():
            raise UserError(f"{NAME}: {list_file} line {number} is not 'image_id class_id super_class_id path': {line}")
        records.append(Record(str(list_file.parent / fields[3]), int(fields[1])))
    require_files(NAME, [record.path for record in records], list_file)
    return records
