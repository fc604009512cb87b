"""In-Shop Clothes Retrieval, DeepFashion (Liu et al., "DeepFashion: powering robust clothes recognition and
retrieval with rich annotations", 2016)."""

from __future__ import annotations

import re
from pathlib import Path

from d3still.data.datasets.base import DATASETS, Box, Record, RetrievalDataset
from d3still.data.datasets.files import child, read_lines, require_child, require_files
from d3still.data.datasets.layout import Layout, PartPaths, Parts, load_benchmark, match_names, rearranged
from d3still.errors import UserError
from d3still.text import some

NAME, NAME_CROPPED = "InShop", "InShopCropped"
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
BOX_PLACES = ("list_bbox_inshop.txt", "Anno/list_bbox_inshop.txt", "Eval/list_bbox_inshop.txt")
_NAME_PATTERN = r"(?:id_?)?(-?\d+)"


@DATASETS.register(NAME)
def inshop(root: Path) -> RetrievalDataset:
    """In-Shop: clothes; the query images are camera 0, the gallery images camera 1."""
    authors = [Layout((place,), _read_authors) for place in PARTITION_PLACES]
    return load_benchmark(NAME, root, FOLDERS, [*authors, rearranged(NAME, _read_names)[0]], PUBLISHED)


@DATASETS.register(NAME_CROPPED)
def inshop_cropped(root: Path) -> RetrievalDataset:
    """In-Shop in the authors' form, each image cut to its box in list_bbox_inshop.txt."""
    authors = [Layout((place,), _read_cropped) for place in PARTITION_PLACES]
    return load_benchmark(NAME_CROPPED, root, FOLDERS, authors, PUBLISHED)


def _read_names(name: str, paths: PartPaths) -> Parts:
    parts = {}
    for (part, camera), images in zip(PART_CAMERAS.items(), paths, strict=True):
        matches = match_names(name, images, [_NAME_PATTERN])
        parts[part] = [Record(path, int(match[1]), camera) for path, match in zip(images, matches, strict=True)]
    return Parts(**parts)


def _read_authors(folder: Path) -> Parts:
    list_file = _find(folder, PARTITION_PLACES)
    images = _images(folder)
    parts: dict[str, list[Record]] = {part: [] for part in PART_CAMERAS}
    for number, line in _data_lines(list_file):
        fields = line.rsplit(maxsplit=2)
        item = re.fullmatch(r"(?:id_)?(\d+)", fields[1]) if len(fields) == 3 else None
        if item is None or fields[2] not in parts:
            raise UserError(
                f"{NAME}: {list_file} line {number} is not 'image_name item_id train|query|gallery': {line}"
            )
        part = fields[2]
        parts[part].append(Record(str(images / fields[0]), int(item[1]), PART_CAMERAS[part]))
    require_files(NAME, [record.path for part in parts.values() for record in part], list_file)
    return Parts(**parts)


def _read_cropped(folder: Path) -> Parts:
    parts, boxes = _read_authors(folder), _boxes(folder)
    for records in (parts.train, parts.query, parts.gallery):
        lacking = [record.path for record in records if record.path not in boxes]
        if lacking:
            raise UserError(f"{NAME_CROPPED}: {BOX_PLACES[0]} has no box for {some(lacking)}; use {NAME} instead")
        records[:] = [record._replace(box=boxes[record.path]) for record in records]
    return parts


def _boxes(folder: Path) -> dict[str, Box]:
    """Lines of 'image_name clothes_type pose_type x_1 y_1 x_2 y_2'."""
    list_file, images = _find(folder, BOX_PLACES), _images(folder)
    boxes: dict[str, Box] = {}
    for number, line in _data_lines(list_file):
        fields = line.rsplit(maxsplit=6)
        if len(fields) != 7 or not all(field.isdecimal() for field in fields[3:]):
            raise UserError(f"{NAME_CROPPED}: {list_file} line {number} is no image with its box: {line}")
        left, top, right, bottom = (int(field) for field in fields[3:])
        boxes[str(images / fields[0])] = (left, top, right, bottom)
    return boxes


def _data_lines(list_file: Path) -> list[tuple[int, str]]:
    """Without the count and the column names with which the authors' lists begin."""
    lines = read_lines(list_file)
    return [(n, line) for n, line in lines if not line.isdecimal() and not line.startswith("image_name")]


def _images(folder: Path) -> Path:
    """What the lists' paths, which begin with img/, are relative to: Img/ in the authors' archive."""
    outer = child(folder, "Img")
    return outer if outer and child(outer, "img") else folder


def _find(folder: Path, places: tuple[str, ...]) -> Path:
    found = [path for place in places if (path := child(folder, place))]
    return found[0] if found else require_child(folder, places[0])
