"""Finding images and lists on a disk, alike on every file system."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from d3still.data.image import IMAGE_SUFFIXES, is_image_name
from d3still.errors import UserError
from d3still.files import require_regular
from d3still.text import some


class NotHere(UserError):
    """A folder holds nothing of a dataset; another one may."""


def find_images(folder: Path) -> list[str]:
    """All image files below ``folder``, sorted; hidden files and folders are left out, links followed."""
    return sorted(_walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterable[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link back to a folder that holds it
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); check the path and its rights") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {real})
        elif is_image_name(Path(entry.name)):
            yield entry.path


def require_images(name: str, folder: Path, expected: str) -> list[str]:
    """`find_images`, with a `UserError` that says what was expected where there are none."""
    images = find_images(folder)
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{name}: no image ({kinds}) in {folder}; expected {expected}")
    return images


def child(folder: Path, name: str) -> Path | None:
    """The entry of ``folder`` called ``name`` in any case; an exact match first."""
    exact = folder / name
    if exact.exists():
        return exact
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return None
    return next((entry for entry in entries if entry.name.lower() == name.lower()), None)


def require_child(folder: Path, name: str) -> Path:
    """`child`, with a `UserError` where there is none."""
    found = child(folder, name)
    if found is None:
        raise UserError(f"{folder / name} is missing; see datasets/README.md for what belongs there")
    return found


def read_bytes(path: Path) -> bytes:
    """What a table or list holds; a `UserError` where it cannot be read or is no regular file."""
    try:
        require_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); restore it or check its rights") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line]


def require_files(name: str, paths: Iterable[str], source: Path | None) -> None:
    """A `UserError` that names the first of the images that ``source`` lists and the disk lacks."""
    known: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, file = os.path.split(path)
        if folder not in known:
            there = os.scandir(folder) if Path(folder).is_dir() else ()
            known[folder] = {entry.name for entry in there}
        if file not in known[folder]:
            missing.append(path)
    if missing:
        raise UserError(
            f"{name}: {source} lists {len(missing)} images that are not there: {some(missing)}; unpack the images again"
        )
