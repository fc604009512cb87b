"""In-Shop Clothes Retrieval, DeepFashion (Liu et al., "DeepFashion: powering robust clothes recognition and
retrieval with rich annotations", 2016)."""

from __future__ import annotations

import re
from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset
from d3still.data.datasets.files import child, read_lines, require_files
from d3still.data.datasets.layout import Layout, PartPaths, Parts, load_benchmark, match_names, rearranged
from d3still.errors import UserError

NAME = "InShop"
FOLDERS = (
    "InShop", "In-Shop", "In_Shop", "In-shop Clothes Retrieval Benchmark", "In-shop_Clothes_Retrieval_Benchmark",
)  # fmt: skip
PUBLISHED = {
    "train images": (25882,),
    "train identities": (3997,),
    "query images": (14218,),
    "query identities": (3985,),
    "gallery images": (12612,),
    "gallery identities": (3985,),
}
QUERY_CAMERA, GALLERY_CAMERA = 0, 1  # nothing is removed: query and gallery never share a camera
PART_CAMERAS = {"train": GALLERY_CAMERA, "query": QUERY_CAMERA, "gallery": GALLERY_CAMERA}
PARTITION_PLACES = (
    "list_eval_partition.txt", "Eval/list_eval_partition.txt", "Anno/list_eval_partition.txt",
)  # fmt: skip
_COLUMNS = 3  # image_name item_id evaluation_status
_NAME_PATTERN = r"(?:id_?)?(-?\d+)"


@DATASETS.register(NAME)
def inshop(root: Path) -> RetrievalDataset:
    """In-Shop: clothes; the query images are camera 0, the gallery images camera 1."""
    authors = [Layout((place,), _read_authors) for place in PARTITION_PLACES]
    return load_benchmark(NAME, root, FOLDERS, [*authors, rearranged(NAME, _read_names)[0]], PUBLISHED)


def _read_names(name: str, paths: PartPaths) -> Parts:
    parts = {}
    for (part, camera), images in zip(PART_CAMERAS.items(), paths, strict=True):
        matches = match_names(name, images, [_NAME_PATTERN])
        parts[part] = [
            Record(path, int(match[1]), camera) for path, match in zip(images, matches, strict=True)
        ]
    return Parts(**parts)


def _read_authors(folder: Path) -> Parts:
    list_file = _partition_file(folder)
    images = child(folder, "Img") or folder  # the list's paths begin with img/
    parts: dict[str, list[Record]] = {part: [] for part in PART_CAMERAS}
    for number, line in read_lines(list_file):
        fields = line.rsplit(maxsplit=_COLUMNS - 1)
        if line.isdecimal() or fields[0] == "image_name":
            continue  # the file begins with a count and the names of the columns
        item = re.fullmatch(r"(?:id_)?(\d+)", fields[1]) if len(fields) == _COLUMNS else None
        if item is None or fields[2] not in parts:
            raise UserError(
                f"{NAME}: {list_file} line {number} is not 'image_name item_id train|query|gallery': {line}"
            )
        part = fields[2]
        parts[part].append(Record(str(images / fields[0]), int(item[1]), PART_CAMERAS[part]))
    require_files(NAME, [record.path for part in parts.values() for record in part], list_file)
    return Parts(**parts)


def _partition_file(folder: Path) -> Path:
    found = (child(folder, place) for place in PARTITION_PLACES)
    return next(path for path in found if path)
