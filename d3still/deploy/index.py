"""A gallery that answers: features of its images in a FAISS index, and the images that they are of.

Its file is a zip archive, not compressed, whose own checksums tell whether it is whole:

    header.json  which network embedded the images, how the index was made
    images.json  id, path, identity, camera and box of each image, in the order of their ids
    index.faiss  what faiss.write_index writes
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from d3still.deploy.embedder import Embedder, embed_images
from d3still.deploy.gallery import Gallery, Match, header_of
from d3still.deploy.kinds import (
    Blocks,
    IndexOptions,
    Queries,
    add,
    held_out,
    new_index,
    recall_queries,
    remove,
    stored_features,
    train,
    tune,
    without,
)
from d3still.deploy.listing import UNKNOWN, GalleryImage, Stamp, list_images, stamps_of
from d3still.errors import UserError, require
from d3still.files import require_regular, user_path, write_atomically

logger = logging.getLogger(__name__)

VERSION = 2
_HEADER, _IMAGES, _FAISS = "header.json", "images.json", "index.faiss"
_FORMER = b"d3still gallery index\n"  # how files of version 1 begin
_MAGIC = b"PK\x03\x04"
_AGAIN = "build it again (build --overwrite)"
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, KeyError, RuntimeError)


class GalleryIndex(Gallery):
    """A gallery in a FAISS index, which is one file.

    Args:
        index: a trained FAISS index over inner products.
        images: what its rows are of, in order.
        header: what `header_of` made.
        ids: the images' ids, ascending; counted from 0 by default.
        next_id: the id of the next image to be added; the one after the last by default.
        stamps: size and time of change of each image's file when it was embedded; unknown by default.
    """

    def __init__(
        self,
        index: Any,
        images: list[GalleryImage],
        header: dict[str, Any],
        ids: Sequence[int] | None = None,
        next_id: int | None = None,
        stamps: Sequence[Stamp] | None = None,
    ) -> None:
        if index.ntotal != len(images):
            raise UserError(f"the index holds {index.ntotal} features of {len(images)} images; build it again")
        self.index, self.images, self.header = index, images, header
        self._named: dict[str, dict[str, np.ndarray]] = {}
        self.ids = np.arange(len(images)) if ids is None else np.array(ids, np.int64)
        self.next_id = int(self.ids.max(initial=-1)) + 1 if next_id is None else next_id
        self.stamps = [UNKNOWN] * len(images) if stamps is None else [tuple(stamp) for stamp in stamps]
        if len(self.stamps) != len(images):
            raise UserError("the list of its images is damaged; build it again")
        if len(self.ids) != len(images) or (np.diff(self.ids, append=self.next_id) < 1).any():
            raise UserError("the ids of its images are not ascending; build it again")

    @classmethod
    def build(
        cls,
        embedder: Embedder,
        images: str | Path | Iterable[Any],
        options: IndexOptions | None = None,
        queries: str | Path | Iterable[Any] | None = None,
        query_network: Embedder | None = None,
    ) -> GalleryIndex:
        """Embed a gallery in memory; for large ones see `d3still.deploy.IndexBuilder`, which can be resumed.

        Args:
            embedder: of the gallery network.
            images: a folder, a CSV file, or paths: see `d3still.deploy.listing.list_images`. Unreadable ones
                are left out, logged, and listed in ``header["unreadable"]``.
            options: the kind of index; exact by default.
            queries: images to measure recall with: see `d3still.deploy.kinds.held_out`.
            query_network: that embeds them; None = that of the embedder's file.

        Raises:
            UserError: there is no image, or none that can be read.
        """
        options, listed = options or IndexOptions(), list_images(images)
        asked = None if options.kind == "exact" else held_out(embedder, listed, queries)
        kept, blocks, unreadable, stamps = _embedded(embedder, listed)
        index = new_index(options, embedder.description.feature_width, len(kept))
        train(index, blocks, len(kept))
        add(index, blocks)
        found = cls(index, kept, header_of(embedder.description, options, unreadable), stamps=stamps)
        if asked is not None:
            found.measure(blocks, options, recall_queries(embedder, kept, asked, query_network))
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GalleryIndex:
        """Read an index file.

        Raises:
            UserError: when it is missing, of another version, cut short or damaged.
        """
        path, faiss = user_path(path), require("faiss", "an index")
        with _opened(path) as (archive, header):
            columns = json.loads(archive.read(_IMAGES))
            with archive.open(_FAISS) as member:
                index = faiss.read_index(faiss.PyCallbackIOReader(member.read))
        try:
            boxes = (None if box is None else tuple(box) for box in columns["boxes"])
            rows = zip(columns["paths"], columns["identities"], boxes, columns["cameras"], strict=True)
            images = [GalleryImage(*row) for row in rows]
            return cls(index, images, header, columns["ids"], columns["next_id"], columns["stamps"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: its list of images is damaged; build it again (build --overwrite)") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file; until it is complete, a former file of that name stays as it was.

        Raises:
            UserError: when it cannot be written.
        """
        columns = {
            "next_id": self.next_id,
            "ids": self.ids.tolist(),
            "paths": [image.path for image in self.images],
            "identities": [image.identity for image in self.images],
            "boxes": [image.box for image in self.images],
            "cameras": [image.camera for image in self.images],
            "stamps": self.stamps,
        }

        def write(file: Any) -> None:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps({"version": VERSION, **self.header}))
                archive.writestr(zipfile.ZipInfo(_IMAGES), json.dumps(columns))
                with archive.open(zipfile.ZipInfo(_FAISS), "w", force_zip64=True) as member:
                    write_faiss(self.index, member.write)

        write_atomically(user_path(path), write)

    def add(self, embedder: Embedder, images: str | Path | Iterable[Any]) -> list[GalleryImage]:
        """Embed further images and append them; those that are in the index already stay as they are.

        Returns:
            The images that were added.

        Raises:
            UserError: the embedder is not of the network that embedded the others.
        """
        self.require_same_network(embedder.description)
        new = self.missing(list_images(images))
        if not new:
            return []
        kept, *more = _embedded(embedder, new)
        self.append(kept, *more)
        return kept

    def append(
        self, images: list[GalleryImage], blocks: Blocks, unreadable: dict[str, str], stamps: Sequence[Stamp]
    ) -> None:
        """See `Gallery.append`."""
        add(self.index, blocks)
        self._named = {}
        self.images.extend(images)
        self.stamps += stamps
        self.ids = np.append(self.ids, np.arange(self.next_id, self.next_id + len(images)))
        self.next_id += len(images)
        added = {image.path for image in images}
        reasons = {path: why for path, why in self.header["unreadable"].items() if path not in added}
        self.header |= {"unreadable": reasons | unreadable, "source": None}

    def remove(self, ids: Iterable[int]) -> list[GalleryImage]:
        """See `Gallery.remove`."""
        wanted = np.unique(np.fromiter(ids, np.int64))
        rows = np.searchsorted(self.ids, wanted)
        known = rows < len(self.ids)
        known[known] = self.ids[rows[known]] == wanted[known]
        if not known.all():
            raise UserError(f"the index holds no image of the id {wanted[~known][0]}; see the ids that a search gives")
        removed = [self.images[row] for row in rows]
        if removed:
            self.index = remove(self.index, rows)
            self._named = {}
            kept = np.delete(np.arange(len(self.images)), rows)
            self.images, self.stamps = [self.images[row] for row in kept], [self.stamps[row] for row in kept]
            self.ids = np.delete(self.ids, rows)
            self.header["source"] = None
        return removed

    def measure(self, blocks: Blocks, options: IndexOptions, queries: Queries | None) -> None:
        """Choose the effort of a search and put the recall that it reaches into the header."""
        recall = tune(self.index, blocks, options, queries)
        if recall is not None:
            self.header["recall"] = asdict(recall)
            logger.info(
                "recall@%d against exact search: %.3f, looking at %d; measured with %s",
                recall.at,
                recall.value,
                recall.effort,
                recall.measured_with,
            )

    def entries(self) -> Iterator[tuple[int, GalleryImage, Stamp]]:
        """See `Gallery.entries`."""
        return zip(self.ids.tolist(), self.images, self.stamps, strict=True)

    def _find(self, features: np.ndarray, topk: int, without: dict[str, str]) -> list[list[Match]]:
        rows = [self._rows(field)[name] for field, name in without.items()]
        passed_over = np.unique(np.concatenate(rows)) if rows else None
        scores, positions = self.search_features(features, topk, passed_over)
        return [
            [
                Match(float(score), *self.images[place], int(self.ids[place]))
                for score, place in zip(*row, strict=True)
                if place >= 0
            ]
            for row in zip(scores, positions, strict=True)
        ]

    def image_of(self, id: int) -> GalleryImage | None:
        """The image of an id; None where the index holds none."""
        row = int(np.searchsorted(self.ids, id))
        return self.images[row] if row < len(self.ids) and self.ids[row] == id else None

    def search_features(
        self, features: np.ndarray, topk: int = 10, passed_over: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions in ``images``, both (Q, topk), of features (Q, D) of length 1; −1 where there are fewer.

        Positions in ``passed_over`` are none of the answers.

        Raises:
            UserError: features of another width, not finite, or a topk below 1.
        """
        features = self.checked(features, topk)
        if not self.images:
            return np.empty((len(features), 0), np.float32), np.empty((len(features), 0), np.int64)
        topk = min(topk, len(self.images))
        if passed_over is None or not len(passed_over):
            return self.index.search(features, topk)
        # faiss.contrib.torch_utils, which pytorch-metric-learning imports, takes `search` over and knows no `params`.
        search = getattr(self.index, "search_numpy", self.index.search)
        return search(features, topk, params=without(self.index, passed_over))

    def features(self) -> np.ndarray:
        """Features (N, D) of all images, in the order of ``images``; of an "ivfpq" index what its codes tell."""
        if not hasattr(self.index, "make_direct_map"):
            return stored_features(self.index)
        self.index.make_direct_map(True)  # lists know who is in them, but not who is where
        features = stored_features(self.index)
        self.index.make_direct_map(False)
        return features

    def __len__(self) -> int:
        return len(self.images)

    def _rows(self, field: str) -> dict[str, np.ndarray]:
        """Name → rows, of all identities or of all cameras; made at the first search that asks for it."""
        if field not in self._named:
            rows: dict[str, list[int]] = defaultdict(list)
            for row, image in enumerate(self.images):
                rows[getattr(image, field)].append(row)
            none = np.empty(0, np.int64)
            self._named[field] = defaultdict(lambda: none, {name: np.array(found) for name, found in rows.items()})
        return self._named[field]


def _embedded(
    embedder: Embedder, images: list[GalleryImage]
) -> tuple[list[GalleryImage], Blocks, dict[str, str], list[Stamp]]:
    """What `Gallery.append` takes: the readable images, their features, why the others are not, and their stamps."""
    stamps = stamps_of(images)
    kept: list[GalleryImage] = []
    features: list[np.ndarray] = []
    unreadable: dict[str, str] = {}
    for batch in embed_images(embedder, images):
        kept += [images[position] for position in batch.positions]
        features.append(batch.features)
        unreadable |= {images[position].path: why for position, why in batch.unreadable.items()}
    if not kept:
        raise UserError(f"none of the {len(images)} images can be read; {next(iter(unreadable.values()))}")
    return kept, lambda: iter(features), unreadable, [stamps[image] for image in kept]


def write_faiss(index: Any, write: Callable[[bytes], int]) -> None:
    """Pass what ``faiss.write_index`` writes to a function, piece by piece."""
    faiss = require("faiss", "an index")
    writer = faiss.PyCallbackIOWriter(write)
    faiss.write_index(index, writer)
    del writer  # it still holds what it has not passed on


def read_header(path: Path) -> dict[str, Any]:
    """The header alone; the rest is only checked for damage. Errors as of `GalleryIndex.load`."""
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The archive, every checksum of which is right, and its header; what then still fails is this file's fault."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_FORMER))
            if start == _FORMER:
                raise UserError(f"{path}: is a gallery index of an earlier d3still; {_AGAIN}")
            if not start.startswith(_MAGIC):
                cut = start and _MAGIC.startswith(start)
                raise UserError(f"{path}: {'is cut short' if cut else 'is no gallery index'}; {_AGAIN}")
            with zipfile.ZipFile(file) as archive:
                yield archive, _checked(path, archive)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such gallery index; make it with tools/index_net.py build") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not a gallery index; name the file in it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is cut short or damaged ({reason}); copy it again, or {_AGAIN}") from error


def _checked(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    if _HEADER not in archive.namelist():
        raise UserError(f"{path}: is no gallery index; {_AGAIN}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise UserError(f"{path}: is damaged (it seems compressed); copy it again, or {_AGAIN}")
    damaged = archive.testzip()  # FAISS itself would crash on some damaged files
    if damaged:
        raise UserError(f"{path}: is damaged (the checksum of {damaged} differs); copy it again, or {_AGAIN}")
    header = json.loads(archive.read(_HEADER))
    version = header.pop("version")
    if version != VERSION:
        raise UserError(
            f"{path}: is a gallery index of version {version}, but this d3still reads version {VERSION}; use the "
            f"d3still that wrote it, or {_AGAIN}"
        )
    return header
