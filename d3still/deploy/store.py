"""What an unfinished build has embedded so far, in a folder beside the index, safe from a kill at any moment.

A chunk is a pair of files, ``NAME.npy`` with features and ``NAME.json`` with their checksum and the images that
they are of, written last: without it, the other does not count. An image counts as embedded only if its file has
the size and time of change that it had then, and its chunk is whole. A folder without the plan of a build is not
ours, and in one that is, only files of our own names are touched. Processes of torchrun fill one folder together.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from d3still.deploy.listing import Box, GalleryImage, stamps_of
from d3still.deploy.network_files import SHORT
from d3still.errors import UserError
from d3still.files import write_atomically, write_text
from d3still.locks import LOCK, OWNER, locked

logger = logging.getLogger(__name__)

PLAN = "plan.json"
TRAINED, PART = "trained.faiss", "part-{}.faiss"
PATIENCE = timedelta(days=1)  # a rank may wait that long for the others' share of a large gallery
BLOCK = 4096  # features handed on at once
_FORMAT = "d3still unfinished gallery index"
_NAMES = r"trained\.faiss|part-\d+\.faiss|chunk-\d+-\d{8}\.(npy|json)"
_OWN = re.compile(rf"{_NAMES}|\.({_NAMES}|plan\.json)\.[a-z0-9_]+\.d3still-part")  # features, and unfinished files

T = TypeVar("T")
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

    @classmethod
    def beside(cls, index: Path) -> FeatureStore:
        """That of an index file."""
        return cls(index.with_name(f"{index.name}.building"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from building the same index meanwhile; a kill ends it too.

        Raises:
            UserError: another one is at it, or the folder holds something that is not ours.
        """
        self._planned()
        with locked(self.folder):
            yield
        with suppress(OSError):  # unfinished, or another process is at it by now
            self.folder.rmdir()

    def begin(self, embedding: dict[str, Any], restart: bool = False) -> None:
        """Make the folder ready for this network's features, and see what is there already.

        Raises:
            UserError: the folder holds another network's features, and ``restart`` does not say to drop them.
        """
        former = self._planned()
        if former not in (None, embedding):
            if not restart:
                raise UserError(
                    f"{self.folder} holds an unfinished build by another network ({former.get('network')} "
                    f"{str(former.get('weights_hash'))[:SHORT]}); finish it with those weights, or drop it with "
                    "--overwrite"
                )
            self._drop_features()
        write_text(self.folder / PLAN, json.dumps({"format": _FORMAT, "embedding": embedding}))
        for path in self._chunks():
            self._drop_if_damaged(path)
        self.read()

    def read(self) -> None:
        """See which images are embedded, in chunks of any rank."""
        self._places, self._unreadable = {}, {}
        for path in self._chunks():
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
        buffer = io.BytesIO()
        np.save(buffer, features)
        data = buffer.getbuffer()
        content = {"checksum": zlib.crc32(data), "images": list(keys), "unreadable": list(unreadable)}
        write_atomically(self.folder / f"{name}.npy", lambda file: file.write(data))
        write_text(self.folder / f"{name}.json", json.dumps(content))

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
            self._drop_features()
            (self.folder / PLAN).unlink(missing_ok=True)

    def _chunks(self) -> list[Path]:
        return sorted(self.folder.glob("chunk-*.json"))

    def _chunk(self, name: str) -> np.ndarray:
        if name not in self._opened:
            self._opened[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._opened[name]

    def _drop_if_damaged(self, path: Path) -> None:
        """Forget a chunk whose files are not as they were written; its images are then embedded again."""
        features = path.with_suffix(".npy")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            whole = content["checksum"] == zlib.crc32(np.memmap(features, np.uint8, "r"))
        except (OSError, ValueError, KeyError, TypeError):  # ValueError: also no JSON, no UTF-8, an empty file
            whole = False
        if not whole:
            logger.warning("%s is damaged; its images are embedded again", features.with_suffix(""))
            path.unlink()
            features.unlink(missing_ok=True)

    def _planned(self) -> dict[str, Any] | None:
        """The network whose features are here, if there are any.

        Raises:
            UserError: the folder holds something that is not ours.
        """
        try:
            found = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
            if found["format"] == _FORMAT:
                return found["embedding"]
        except FileNotFoundError:
            if not self.folder.exists() or all(_may_precede_a_plan(path) for path in self.folder.iterdir()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{self.folder} is no unfinished build that can be gone on with, or a damaged one; move it away, or "
            "choose another --out"
        )

    def _drop_features(self) -> None:
        """Delete all but the plan, which says whose a rest would be, the lock, and what others put there."""
        for path in self.folder.iterdir():
            if _OWN.fullmatch(path.name) and path.is_file():
                path.unlink()


def _may_precede_a_plan(path: Path) -> bool:
    """Whether a process that is killed before it has written its plan may leave such a file."""
    return path.name in (LOCK, OWNER) or (path.name.startswith(f".{PLAN}.") and bool(_OWN.fullmatch(path.name)))


def keyed(images: Sequence[GalleryImage]) -> list[tuple[GalleryImage, Key]]:
    """Each image with its key."""
    return [(image, (image.path, image.box, *stamp)) for image, stamp in stamps_of(images).items()]


def _key(values: list[Any]) -> Key:
    path, box, size, changed = values
    return path, None if box is None else tuple(box), size, changed


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun, alone without it; its network runs on ``device``."""

    rank: int = 0
    world_size: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the index."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's contiguous part of a list; all parts in order are the list."""
        return items[len(items) * self.rank // self.world_size : len(items) * (self.rank + 1) // self.world_size]

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on rank 0, where alone it is called, on every rank."""
        value = [make() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(value, src=0)
        return value[0]

    def wait(self) -> None:
        """Until every rank has come this far."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them again. Each takes a GPU of its own, if there are."""
    rank, world_size, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = Ranks(rank, world_size, torch.device("cuda", local % cards) if cards else torch.device("cpu"))
    if ranks.world_size == 1:
        yield ranks
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # only to wait for each other: features go by files
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
