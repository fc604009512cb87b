"""What the benchmarks share: finding their folder, telling their forms apart, reading file names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from d3still.data.datasets.base import Record, RetrievalDataset
from d3still.data.datasets.files import NotHere, child, require_child, require_images
from d3still.errors import UserError
from d3still.text import some


@dataclass
class Parts:
    """The records of a dataset as one of its forms describes them, and what is odd about it."""

    train: list[Record]
    query: list[Record]
    gallery: list[Record]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A form in which a dataset is distributed: the entries that mark it and how to read it."""

    marks: tuple[str, ...]
    read: Callable[[Path], Parts]


def load_benchmark(
    name: str,
    root: Path,
    folder_names: Sequence[str],
    layouts: Sequence[Layout],
    published: dict[str, tuple[int, ...]],
) -> RetrievalDataset:
    """A benchmark from its folder or one that holds it, in the first form that is found there.

    Args:
        name: the registered name.
        root: where to look.
        folder_names: what the benchmark's folder is called, in any case.
        layouts: its forms; the first whose marks are all there is read.
        published: counts to compare with.

    Raises:
        UserError: none of the forms is there, or one of its files is wrong.
    """
    for folder in _candidates(root, folder_names):
        for layout in layouts:
            if all(child(folder, mark) for mark in layout.marks):
                parts = layout.read(folder)
                dataset = RetrievalDataset.from_records(name, parts.train, parts.query, parts.gallery)
                dataset.notes.extend(parts.notes)
                dataset.compare_with_published(published)
                return dataset
    forms = "; or ".join(", ".join(layout.marks) for layout in layouts)
    raise NotHere(
        f"{name}: nothing known in {root}, nor in a folder of it called {' or '.join(folder_names)}; "
        f"expected {forms} (datasets/README.md)"
    )


def _candidates(root: Path, folder_names: Sequence[str]) -> list[Path]:
    """The folder itself, folders of the right name in it, and the same once more below those."""
    inside = [found for name in folder_names if (found := child(root, name)) and found.is_dir()]
    below = [f for outer in inside for name in folder_names if (f := child(outer, name)) and f.is_dir()]
    return [root, *dict.fromkeys(inside), *dict.fromkeys(below)]


PartPaths = Sequence[Sequence[str]]
"""Image paths of train, query and gallery."""

NameReader = Callable[[str, PartPaths], Parts]
"""(dataset name, paths of the three parts) → records, from the file names alone."""


def rearranged(name: str, read_names: NameReader) -> list[Layout]:
    """D3Still's form of a dataset: train/ query/ gallery/, or train/ test/ where test is both."""

    def read(folder: Path, parts: Sequence[str]) -> Parts:
        images = {
            part: require_images(name, require_child(folder, part), f"the images of the {part} part")
            for part in dict.fromkeys(parts)
        }
        return read_names(name, [images[part] for part in parts])

    return [
        Layout(("train", "query", "gallery"), lambda folder: read(folder, ("train", "query", "gallery"))),
        Layout(("train", "test"), lambda folder: read(folder, ("train", "test", "test"))),
    ]


def names_with_camera(*patterns: str) -> NameReader:
    """Reads identity (group 1) and camera (group 2) from file names, by the first pattern that matches.

    Cameras count from 1 in the names (c001) and from 0 here; names that use c000 count from 0 already.
    """

    def read(name: str, paths: PartPaths) -> Parts:
        parts = [match_names(name, part, patterns) for part in paths]
        first = min(1, min(int(match[2]) for matches in parts for match in matches))
        return named_parts(paths, parts, lambda match: int(match[2]) - first)

    return read


def names_with_number(*patterns: str) -> NameReader:
    """Reads identity (group 1) and image number (group 2) from file names; each file is its own camera.

    The number is the camera where it tells the files of each part apart, else the place of the file's name
    among all names is, so that a copy of a query in the gallery shares its camera in either case.
    """

    def read(name: str, paths: PartPaths) -> Parts:
        parts = [match_names(name, part, patterns) for part in paths]
        if all(len({int(match[2]) for match in matches}) == len(matches) for matches in parts):
            return named_parts(paths, parts, lambda match: int(match[2]))
        names = sorted({match.string for matches in parts for match in matches})
        places = {file: place for place, file in enumerate(names)}
        return named_parts(paths, parts, lambda match: places[match.string])

    return read


def named_parts(
    paths: PartPaths, parts: Sequence[Sequence[re.Match[str]]], camera: Callable[[re.Match[str]], int]
) -> Parts:
    """The records of train, query and gallery from what their names matched; group 1 is the identity."""
    return Parts(
        *(
            [Record(path, int(match[1]), camera(match)) for path, match in zip(part, matches, strict=True)]
            for part, matches in zip(paths, parts, strict=True)
        )
    )


def match_names(name: str, paths: Sequence[str], patterns: Sequence[str]) -> list[re.Match[str]]:
    """A match of each file's name, never of its folders; a `UserError` names those that have none."""
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    found, wrong = [], []
    for path in paths:
        file = os.path.basename(path)  # noqa: PTH119  (ten times faster than Path over 100,000 names)
        match = next((m for regex in compiled if (m := regex.match(file))), None)
        if match is None:
            wrong.append(path)
        else:
            found.append(match)
    if wrong:
        raise UserError(
            f"{name}: {len(wrong)} file names do not say identity and image as expected "
            f"({' or '.join(patterns)}): {some(wrong)}; rename or remove them"
        )
    return found
