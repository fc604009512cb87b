"""What an unfinished build has embedded so far, in a folder beside the index, safe from a kill at any moment.

A chunk is a pair of files, ``NAME.npy`` with features and ``NAME.json`` with the images that they are of,
written last: without it, the other does not count. An image counts as embedded only if its file has the
size and time of change that it had then.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from d3still.deploy.description import SHORT
from d3still.deploy.listing import Box, GalleryImage
from d3still.errors import UserError
from d3still.files import write_atomically, write_text

try:
    import fcntl
except ImportError:  # Windows: two builds at once are the user's own care
    fcntl = None  # type: ignore[assignment]

PLAN = "plan.json"
BLOCK = 4096  # features handed on at once
_LOCK = "lock"

Key = tuple[str, Box | None, int, int]
"""Path, box, size and time of change of an image: what must be the same for its feature to be used again."""


class FeatureStore:
    """Features of images by one network, kept until an index is made of them.

    Args:
        folder: where; created by `begin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[Key, tuple[str, int]] = {}  # → chunk and row
        self._unreadable: dict[Key, str] = {}
        self._opened: dict[str, np.ndarray] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from building the same index meanwhile; a kill ends it too.

        Raises:
            UserError: when another one is at it.
        """
        while True:
            self._make_folder()
            try:
                handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue  # another process has just finished and removed the folder
            try:
                self._lock(handle)
                if self._is_current(handle):
                    try:
                        yield
                    finally:
                        if self._planned() is None:  # nothing was begun
                            shutil.rmtree(self.folder, ignore_errors=True)
                    return
            finally:
                os.close(handle)

    def begin(self, embedding: dict[str, Any], restart: bool = False) -> None:
        """Make the folder ready for this network's features, and see what is there already.

        Raises:
            UserError: the folder holds another network's features, and ``restart`` does not say to drop them.
        """
        former = self._planned()
        if former not in (None, embedding):
            if not restart:
                raise UserError(
                    f"{self.folder} holds an unfinished build by another network ({former['network']} "
                    f"{former['weights_hash'][:SHORT]}); finish it with those weights, or drop it with --overwrite"
                )
            self._clear()
        write_text(self.folder / PLAN, json.dumps(embedding))
        self.read()

    def read(self) -> None:
        """See which images are embedded, in chunks of any rank."""
        self._places, self._unreadable = {}, {}
        for path in sorted(self.folder.glob("chunk-*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            for row, key in enumerate(content["images"]):
                self._places[_key(key)] = (path.stem, row)
            for key, reason in content["unreadable"]:
                self._unreadable[_key(key)] = reason

    def __contains__(self, key: Key) -> bool:
        return key in self._places or key in self._unreadable

    def save(
        self, rank: int, keys: Sequence[Key], features: np.ndarray, unreadable: Sequence[tuple[Key, str]]
    ) -> None:
        """Keep the features (n, D) of images, and why others could not be read.

        Raises:
            UserError: when they cannot be written.
        """
        number = 1 + max((int(path.stem.split("-")[2]) for path in self.folder.glob(f"chunk-{rank}-*.json")), default=0)
        name = f"chunk-{rank}-{number:08}"
        write_atomically(self.folder / f"{name}.npy", lambda file: np.save(file, features))
        write_text(self.folder / f"{name}.json", json.dumps({"images": list(keys), "unreadable": list(unreadable)}))

    def readable(self, images: Sequence[tuple[GalleryImage, Key]]) -> list[tuple[GalleryImage, Key]]:
        """Those of ``images`` that have a feature; all must be embedded."""
        return [(image, key) for image, key in images if key in self._places]

    def unreadable(self, images: Sequence[tuple[GalleryImage, Key]]) -> dict[str, str]:
        """Path → why, of those of ``images`` that could not be read."""
        return {image.path: self._unreadable[key] for image, key in images if key not in self._places}

    def blocks(self, images: Sequence[tuple[GalleryImage, Key]]) -> Iterator[np.ndarray]:
        """Features of these images, in their order, (n, D) at a time."""
        for start in range(0, len(images), BLOCK):
            places = [self._places[key] for _, key in images[start : start + BLOCK]]
            yield np.stack([self._chunk(name)[row] for name, row in places])

    def remove(self, embedding: dict[str, Any]) -> None:
        """Delete the folder, since the index is complete; but not an unfinished build by another network."""
        self._opened = {}
        if self._planned() in (None, embedding):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _chunk(self, name: str) -> np.ndarray:
        if name not in self._opened:
            self._opened[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._opened[name]

    def _planned(self) -> dict[str, Any] | None:
        """The network whose features are here, if there are any."""
        plan = self.folder / PLAN
        return json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else None

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}; write the index elsewhere") from error

    def _clear(self) -> None:
        """Drop all features. The plan stays until the next one replaces it: it says whose a rest would be."""
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, PLAN):
                path.unlink()

    def _lock(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is at work in {self.folder}; wait until it is done") from error

    def _is_current(self, handle: int) -> bool:
        """Whether the lock is still the folder's own: who held it before may have removed both."""
        try:
            return os.path.samestat(os.fstat(handle), (self.folder / _LOCK).stat())
        except FileNotFoundError:
            return False


def keyed(images: Sequence[GalleryImage]) -> list[tuple[GalleryImage, Key]]:
    """Each image with its key; a missing file has size and time −1."""
    return [(image, (image.path, image.box, *_stamp(image.path))) for image in images]


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  (a million of them)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _key(values: list[Any]) -> Key:
    path, box, size, changed = values
    return path, None if box is None else tuple(box), size, changed
