"""Anyone's own images in folders: train/ID/*.jpg, query/ID/*.jpg, gallery/ID/*.jpg."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset, camera_numbers
from d3still.data.datasets.files import child, require_child, require_images
from d3still.errors import UserError
from d3still.text import some

NAME = "folder"
VALIDATION = "validation"
_KEY = "DATASETS.CAMERA_PATTERN"


@DATASETS.register(NAME)
def folder(root: Path, *, split: str = "test", camera_pattern: str = "") -> RetrievalDataset:
    """Images in a folder for each identity; a folder test/ serves as query and gallery at once.

    So does validation/, where ``split`` is "val"; without it training identities are held out.

    Identities are the folders' names, −1 in the gallery being junk. Each file is its own camera unless
    ``camera_pattern``, searched for in the file's name, gives the camera as its group 1.

    Raises:
        UserError: folders or images are missing, or a file name does not fit the pattern.
    """
    names = ("train", "test", "test") if child(root, "test") else ("train", "query", "gallery")
    own_validation = split == "val" and child(root, VALIDATION) is not None
    if own_validation:
        names = ("train", VALIDATION, VALIDATION)
    parts = [_part(require_child(root, name)) for name in names]
    cameras = _cameras([path for part in parts for path in part], camera_pattern) if camera_pattern else {}
    records = [[Record(path, identity, cameras.get(path)) for path, identity in part.items()] for part in parts]
    dataset = RetrievalDataset.from_records(NAME, *records)
    return dataset.hold_out() if split == "val" and not own_validation else dataset


def _part(part: Path) -> dict[str, str]:
    """Path → identity, the first folder below ``part``."""
    images = require_images(NAME, part, "a folder for each identity with its images")
    relative = [Path(path).relative_to(part).parts for path in images]
    loose = [path for path, steps in zip(images, relative, strict=True) if len(steps) == 1]
    if loose:
        raise UserError(f"{NAME}: {some(loose)}: put each image into a folder named after its identity")
    return {path: steps[0] for path, steps in zip(images, relative, strict=True)}


def _cameras(paths: Sequence[str], pattern: str) -> dict[str, int]:
    """Path → camera: numbers count from 0 (from 1 in the names unless they use 0), names in their order."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{_KEY} '{pattern}' is not a regular expression ({error})") from error
    if regex.groups < 1:
        raise UserError(f"{_KEY} '{pattern}' has no group; put the camera's part in parentheses, as _c(\\d+)_")
    found = {path: match[1] for path in paths if (match := regex.search(Path(path).name))}
    wrong = [path for path in paths if not found.get(path)]
    if wrong:
        raise UserError(f"{_KEY} '{pattern}' finds no camera in the name of {some(wrong)}")
    number = camera_numbers(set(found.values()))
    first = min(1, *number.values())
    return {path: number[value] - first for path, value in found.items()}
