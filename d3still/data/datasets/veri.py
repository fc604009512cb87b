"""VeRi-776 (Liu et al., "A deep learning-based approach to progressive vehicle re-identification", 2016)."""

from __future__ import annotations

import re
from pathlib import Path

from d3still.data.datasets.base import DATASETS, RetrievalDataset
from d3still.data.datasets.files import child, read_bytes, read_lines, require_child, require_files, require_images
from d3still.data.datasets.layout import Layout, Parts, load_benchmark, names_with_camera, rearranged

NAME = "VeRi776"
FOLDERS = ("VeRi776", "VeRi", "VeRi-776", "VeRi_776")
PUBLISHED = {
    "train images": (37746, 37778),  # the authors' list and their paper differ
    "train identities": (576,),
    "query images": (1678,),
    "query identities": (200,),
    "gallery images": (11579,),
    "gallery identities": (200,),
}
XML_ENCODING = "gb18030"  # the superset of the declared gb2312, which Python's XML parser refuses

_read_names = names_with_camera(r"(-?\d+)_c(\d+)")


@DATASETS.register(NAME)
def veri776(root: Path) -> RetrievalDataset:
    """VeRi-776: vehicles, 20 cameras, from the authors' folders or train/ query/ gallery/."""
    authors = Layout(("image_train", "image_query", "image_test"), _read_authors)
    return load_benchmark(NAME, root, FOLDERS, [authors, *rearranged(NAME, _read_names)], PUBLISHED)


def _read_authors(folder: Path) -> Parts:
    notes: list[str] = []
    parts = _read_names(NAME, [_paths(folder, part, notes) for part in ("train", "query", "test")])
    parts.notes.extend(notes)
    return parts


def _paths(folder: Path, part: str, notes: list[str]) -> list[str]:
    """The images that name_PART.txt lists, else PART_label.xml, else all of image_PART."""
    images = require_child(folder, f"image_{part}")
    name_list, label_file = child(folder, f"name_{part}.txt"), child(folder, f"{part}_label.xml")
    labelled = _names_in_xml(label_file) if label_file else []
    listed = [line for _, line in read_lines(name_list)] if name_list else []
    if listed and labelled and set(listed) != set(labelled):
        differing = len(set(listed) ^ set(labelled))
        notes.append(f"{label_file} and {name_list} differ in {differing:,} images; the latter is used")
    names = listed or labelled
    if not names:
        return require_images(NAME, images, "names like 0001_c001_00016450_0.jpg")
    paths = [str(images / name) for name in names]
    require_files(NAME, paths, name_list if listed else label_file)
    return paths


def _names_in_xml(path: Path) -> list[str]:
    text = read_bytes(path).decode(XML_ENCODING, errors="replace")
    return re.findall(r"""imageName\s*=\s*["']([^"']+)["']""", text)
