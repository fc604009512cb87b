"""Sets that come with a clone: an archive of images and a split, unpacked at first use (datasets/emoji, icons)."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from d3still.data.datasets.base import Record, RetrievalDataset
from d3still.data.datasets.files import NotHere
from d3still.errors import UserError
from d3still.files import require_regular
from d3still.text import some

logger = logging.getLogger(__name__)

SPLIT_FILE = "split.json"
IMAGES = "images"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABANDONED_AFTER = 3600.0  # seconds; by then the process that unpacked into a temporary folder is gone

_SPLITS = {"test": ("test", "query"), "val": ("validation", "validation_query")}
"""DATASETS.SPLIT → keys of split.json: the identities that are tested, the files that are queries."""


def load_embedded(name: str, identity: str, root: Path, split: str) -> RetrievalDataset:
    """The set whose images are in ``NAME.zip``; identities are numbered in the order of their names, cameras from 0.

    On first use the images are unpacked beside the archive, or into the user's cache folder where that cannot be
    written to; several processes may do so at once, and what an interrupted one left is completed.

    Args:
        name: of the dataset.
        identity: a pattern of its identities' names; a file is called ``IDENTITY_cCAMERA_SET.webp``.
        root: the folder with the archive and split.json, or the one that holds it as ``NAME``.
        split: "test", or "val" for identities held out of training.

    Raises:
        UserError: the archive or the split is missing or damaged, or the images can be unpacked nowhere.
    """
    archive = _find(name, root)
    form = re.compile(rf"({identity})_c(\d{{3}})_[a-z0-9-]+\.webp")
    sizes = _table(archive, form)
    parts = _read_split(archive, sizes)
    tested, queries = (parts[key] for key in _SPLITS[split])
    images = _unpacked(archive, sizes)
    records = {file: _record(images / file, form) for file in sizes}
    return RetrievalDataset.from_records(
        name,
        train=[r for r in records.values() if r.identity in parts["train"] and r.identity not in tested],
        query=[records[file] for file in queries],
        gallery=[r for file, r in records.items() if r.identity in tested and file not in queries],
    )


def _find(name: str, root: Path) -> Path:
    """The archive."""
    for folder in (root, root / name):
        if (folder / f"{name}.zip").is_file():
            return folder / f"{name}.zip"
    raise NotHere(
        f"{name}: no {name}.zip in {root} nor in {root / name}; set DATASETS.ROOT_DIR to the folder datasets of "
        f"the repository, or {_restore(name)}"
    )


def _restore(name: str) -> str:
    return f"restore it with: git checkout -- datasets/{name}"


def _table(archive: Path, form: re.Pattern[str]) -> dict[str, int]:
    """File name → size of what the archive holds."""
    name = archive.stem
    try:
        require_regular(archive)
        with zipfile.ZipFile(archive) as source:
            sizes = {info.filename: info.file_size for info in source.infolist()}
    except _DAMAGED as error:
        raise UserError(f"{name}: {archive} is damaged ({error}); {_restore(name)}") from error
    except OSError as error:
        raise UserError(f"{name}: {archive} cannot be read ({error.strerror or error}); check its rights") from error
    wrong = [file for file in sizes if not form.fullmatch(file)]
    if wrong or not sizes:
        problem = f"holds {some(map(repr, wrong))}" if wrong else "is empty"
        raise UserError(f"{name}: {archive} {problem}, which is not the {name} set; {_restore(name)}")
    return sizes


def _read_split(archive: Path, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """The lists of split.json, every identity and file of which the archive has."""
    name, path = archive.stem, archive.with_name(SPLIT_FILE)
    try:
        require_regular(path)
        lists = json.loads(path.read_text(encoding="utf-8"))
        keys = ["train", *(key for pair in _SPLITS.values() for key in pair)]
        parts = {key: frozenset(lists[key]) for key in keys}
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read ({error.strerror or error}); {_restore(name)}") from error
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: {path} is damaged ({problem}); {_restore(name)}") from error
    problem = _misfit(parts, frozenset(names), archive.name)
    if problem:
        raise UserError(f"{name}: {path} {problem}; {_restore(name)}")
    return parts


def _misfit(parts: Mapping[str, frozenset[str]], files: frozenset[str], archive: str) -> str:
    """What is wrong between the lists and the archive's files; empty if nothing is."""
    identities = frozenset(name.split("_")[0] for name in files)
    for key, part in parts.items():
        unknown = part - (files if key.endswith("query") else identities)
        if unknown:
            return f"lists {some(sorted(map(str, unknown)))} in '{key}', which {archive} lacks"
    for one, other in (("train", "test"), ("validation", "test")):
        if both := parts[one] & parts[other]:
            return f"has {some(sorted(both))} in both '{one}' and '{other}'"
    if unlisted := identities - parts["train"] - parts["test"]:
        return f"has {some(sorted(unlisted))} in neither 'train' nor 'test'"
    for key, queries in _SPLITS.values():
        if astray := sorted(name for name in parts[queries] if name.split("_")[0] not in parts[key]):
            return f"has {some(astray)} in '{queries}', whose identity is not in '{key}'"
    return ""


def _record(path: Path, form: re.Pattern[str]) -> Record:
    match = form.fullmatch(path.name)
    assert match is not None  # _table has checked every name
    return Record(str(path), match[1], int(match[2]) - 1)


def _unpacked(archive: Path, sizes: Mapping[str, int]) -> Path:
    """The folder with all images, beside the archive or in the user's cache folder."""
    beside = archive.with_name(IMAGES)
    cached = _cache_folder(archive.stem) / IMAGES
    try:
        _complete(beside, archive, sizes)
        return beside
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise _cannot_unpack(archive, beside, error) from error
        logger.info("%s cannot be written to; the %s images go to %s", beside.parent, archive.stem, cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _complete(cached, archive, sizes)
    except OSError as error:
        raise _cannot_unpack(archive, cached, error) from error
    return cached


def _cannot_unpack(archive: Path, images: Path, error: OSError) -> UserError:
    return UserError(
        f"{archive.stem}: {archive} cannot be unpacked to {images} ({error.strerror or error}); make room, or copy "
        f"{archive.name} and {SPLIT_FILE} to a folder that can be written to and set DATASETS.ROOT_DIR to it"
    )


def _cache_folder(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "d3still" / name  # noqa: PTH111  (Path's raises without a home)


def _complete(images: Path, archive: Path, sizes: Mapping[str, int]) -> None:
    """Make ``images`` hold every file of the archive; no file is ever seen half-written in it."""
    missing = _missing(images, sizes)
    if not missing:
        return
    logger.info("unpacking %d images to %s", len(missing), images)
    _remove_abandoned(images)
    part = images.with_name(f".{images.name}-{os.getpid()}-{secrets.token_hex(4)}")
    part.mkdir()
    try:
        _extract(archive, missing, part)
        if len(missing) == len(sizes) and _renamed(part, images):
            return
        images.mkdir(exist_ok=True)
        for name in _missing(images, missing):  # another process may have been at it meanwhile
            (part / name).replace(images / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _missing(images: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """The files that are not there or not as large as they should be, with their sizes."""
    try:
        with os.scandir(images) as entries:
            there = {entry.name: entry.stat().st_size for entry in entries}
    except FileNotFoundError:
        there = {}
    return {name: size for name, size in sizes.items() if there.get(name) != size}


def _extract(archive: Path, names: Iterable[str], folder: Path) -> None:
    """Write the named files of the archive to the folder; each is checked against its checksum."""
    try:
        with zipfile.ZipFile(archive) as source:
            for name in names:
                (folder / name).write_bytes(source.read(name))
    except _DAMAGED as error:
        raise UserError(f"{archive.stem}: {archive} is damaged ({error}); {_restore(archive.stem)}") from error


def _renamed(part: Path, images: Path) -> bool:
    """Whether ``part`` could become ``images``; not where another process, or a past one, made that folder."""
    try:
        part.rename(images)
    except OSError:
        if images.is_dir():
            return False
        raise
    return True


def _remove_abandoned(images: Path) -> None:
    """Remove temporary folders that a killed process left behind."""
    for folder in images.parent.glob(f".{images.name}-*"):
        try:
            abandoned = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER
        except OSError:  # gone meanwhile
            continue
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)
