"""A gallery that answers: features of its images in a FAISS index, and the images that they are of."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3still import __version__
from d3still.deploy.description import SHORT, Description
from d3still.deploy.embedder import Embedder, embed_images, finite
from d3still.deploy.index_file import load_index_file, save_index_file
from d3still.deploy.kinds import Blocks, IndexOptions, add, new_index, remove, train, without
from d3still.deploy.listing import UNKNOWN, Box, GalleryImage, Stamp, absolute, list_images, stamps_of
from d3still.deploy.recall import Queries, held_out, recall_queries, tune
from d3still.errors import UserError

logger = logging.getLogger(__name__)

REBUILD = (
    "features of different networks cannot be compared. After ACD (or any training) the gallery must be embedded "
    "again: tools/index_net.py build --weights … --images … --out …"
)


class Match(NamedTuple):
    """One answer: an image of the gallery, and its score, the cosine between its feature and the query's."""

    score: float
    path: str
    identity: str | None
    box: Box | None = None
    camera: str | None = None
    id: int = -1


class GalleryIndex:
    """Gallery features, searchable, and the images that they are of.

    It knows which network embedded its images and refuses any other's features. Each image has an id, which is
    given once: it stays when others are removed, and is not given again when the image itself is.

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
            queries: images to measure recall with: see `d3still.deploy.recall.held_out`.
            query_network: that embeds them; None = that of the embedder's file.

        Raises:
            UserError: there is no image, or none that can be read.
        """
        options, listed = options or IndexOptions(), list_images(images)
        asked = None if options.kind == "exact" else held_out(embedder, listed, queries)
        stamps = stamps_of(listed)
        kept, features, unreadable = _embedded(embedder, listed)
        index = new_index(options, embedder.description.feature_width, len(kept))
        train(index, lambda: iter(features), len(kept))
        add(index, lambda: iter(features))
        header = header_of(embedder.description, options, unreadable)
        found = cls(index, kept, header, stamps=[stamps[image] for image in kept])
        if asked is not None:
            found.measure(lambda: iter(features), options, recall_queries(embedder, kept, asked, query_network))
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GalleryIndex:
        """Read an index file.

        Raises:
            UserError: when it is missing, of another version, cut short or damaged.
        """
        path = Path(path).expanduser()
        header, columns, index = load_index_file(path)
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
        save_index_file(Path(path).expanduser(), self.header, columns, self.index)

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
        stamps = stamps_of(new)
        kept, features, unreadable = _embedded(embedder, new)
        self.append(kept, lambda: iter(features), unreadable, [stamps[image] for image in kept])
        return kept

    def missing(self, images: list[GalleryImage]) -> list[GalleryImage]:
        """Those of ``images`` that the index does not hold."""
        held = {(image.path, image.box) for image in self.images}
        return [image for image in images if (image.path, image.box) not in held]

    def append(
        self,
        images: list[GalleryImage],
        blocks: Blocks,
        unreadable: dict[str, str],
        stamps: Sequence[Stamp] | None = None,
    ) -> None:
        """Append features that ``blocks`` gives, of these images, from this index's own network."""
        add(self.index, blocks)
        self._named = {}
        self.images.extend(images)
        self.stamps += [UNKNOWN] * len(images) if stamps is None else stamps
        self.ids = np.append(self.ids, np.arange(self.next_id, self.next_id + len(images)))
        self.next_id += len(images)
        added = {image.path for image in images}
        reasons = {path: why for path, why in self.header["unreadable"].items() if path not in added}
        self.header |= {"unreadable": reasons | unreadable, "source": None}

    def remove(self, ids: Iterable[int]) -> list[GalleryImage]:
        """Take images out; the ids of the others stay, and these are not given again.

        Returns:
            The images that were removed.

        Raises:
            UserError: the index holds no image of such an id. It is then as it was.
        """
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

    def ids_of(self, paths: Iterable[str | Path] = (), identities: Iterable[str] = ()) -> list[int]:
        """The ids of all images of these files and of these identities.

        Raises:
            UserError: the index holds no such image.
        """
        by_path, by_identity = defaultdict(list), defaultdict(list)
        for id, image in zip(self.ids.tolist(), self.images, strict=True):
            by_path[image.path].append(id)
            by_identity[image.identity].append(id)
        found: set[int] = set()
        for known, names, kind in (
            (by_path, map(absolute, paths), "image"),
            (by_identity, identities, "image of the identity"),
        ):
            for name in names:
                if name not in known:
                    raise UserError(f"the index holds no {kind} {name}; nothing was removed")
                found.update(known[name])
        return sorted(found)

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

    def search(self, embedder: Embedder, images: Any, topk: int = 10) -> list[Match] | list[list[Match]]:
        """The best gallery images for one query image or several.

        Args:
            embedder: of the query network that belongs with the index's network, or of that network itself.
            images: as `Embedder` takes them.
            topk: answers a query; fewer where the gallery, or what the index looks at, is smaller.

        Returns:
            Matches, best first; a list of such lists for several images.

        Raises:
            UserError: the embedder belongs with another gallery network, or an image cannot be read.
        """
        self.require_partner(embedder.description)
        features = embedder(images)
        rows = self._matches(np.atleast_2d(features), topk)
        return rows[0] if features.ndim == 1 else rows

    def find(
        self,
        features: np.ndarray,
        topk: int = 10,
        without_identity: str | None = None,
        without_camera: str | None = None,
    ) -> list[list[Match]]:
        """The best gallery images for each feature (Q, D), best first.

        Args:
            features: of length 1.
            topk: answers a query.
            without_identity: images of this identity are passed over.
            without_camera: images of this camera are passed over.

        Raises:
            UserError: as of `search_features`.
        """
        named = {"identity": without_identity, "camera": without_camera}
        rows = [self._rows(field)[name] for field, name in named.items() if name is not None]
        return self._matches(features, topk, np.unique(np.concatenate(rows)) if rows else None)

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
        width = self.index.d
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != width:
            raise UserError(f"features of shape {features.shape} do not fit an index of (Q, {width})")
        if topk < 1:
            raise UserError(f"topk is {topk}; it must be at least 1")
        finite(features, [f"query {number}" for number in range(len(features))])
        if not self.images:
            return np.empty((len(features), 0), np.float32), np.empty((len(features), 0), np.int64)
        topk = min(topk, len(self.images))
        if passed_over is None or not len(passed_over):
            return self.index.search(features, topk)
        return self.index.search(features, topk, params=without(self.index, passed_over))

    def features(self) -> np.ndarray:
        """Features (N, D) of all images, in the order of ``images``; of an "ivfpq" index what its codes tell."""
        if not hasattr(self.index, "make_direct_map"):
            return self.index.reconstruct_n(0, len(self.images))
        self.index.make_direct_map(True)  # lists know who is in them, but not who is where
        features = self.index.reconstruct_n(0, len(self.images))
        self.index.make_direct_map(False)
        return features

    def require_same_network(self, description: Description) -> None:
        """Refuse a network whose features must not be mixed with those in the index.

        Raises:
            UserError: naming both networks, or the setting that differs.
        """
        own, other = self.header["embedding"], description.embedding()
        if own["weights_hash"] != other["weights_hash"]:
            raise UserError(f"the index was made by {self.network}, not by the {description}: {REBUILD}")
        differing = [f"{key} {own[key]} → {other[key]}" for key in own if key != "part" and own[key] != other[key]]
        if differing:
            raise UserError(f"the index was made with other settings ({', '.join(differing)}): {REBUILD}")

    def require_partner(self, description: Description) -> None:
        """Refuse a query network that was not trained for the index's network.

        Raises:
            UserError: naming both gallery networks.
        """
        wanted, known = self.header["embedding"]["weights_hash"], description.networks
        if wanted in known.values():
            return
        if set(known) == {"query"}:
            logger.warning("whether the %s belongs with %s, its file does not tell", description, self.network)
            return
        hashes = ", ".join(f"{part} {value[:SHORT]}" for part, value in known.items())
        raise UserError(f"the index was made by {self.network}, but these weights are of {hashes}: {REBUILD}")

    @property
    def network(self) -> str:
        """The network that embedded the images, for a message."""
        embedding = self.header["embedding"]
        return f"the {embedding['part']} network {embedding['network']} {embedding['weights_hash'][:SHORT]}"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def width(self) -> int:
        """D of its features."""
        return self.index.d

    def _rows(self, field: str) -> dict[str, np.ndarray]:
        """Name → rows, of all identities or of all cameras; made at the first search that asks for it."""
        if field not in self._named:
            rows: dict[str, list[int]] = defaultdict(list)
            for row, image in enumerate(self.images):
                rows[getattr(image, field)].append(row)
            none = np.empty(0, np.int64)
            self._named[field] = defaultdict(lambda: none, {name: np.array(found) for name, found in rows.items()})
        return self._named[field]

    def _matches(self, features: np.ndarray, topk: int, passed_over: np.ndarray | None = None) -> list[list[Match]]:
        scores, positions = self.search_features(features, topk, passed_over)
        return [
            [
                Match(float(score), *self.images[place], int(self.ids[place]))
                for score, place in zip(*row, strict=True)
                if place >= 0
            ]
            for row in zip(scores, positions, strict=True)
        ]


def header_of(
    description: Description, options: IndexOptions, unreadable: dict[str, str], source: str | None = None
) -> dict[str, Any]:
    """What an index file says about itself.

    Args:
        description: of the network that embedded the images.
        options: how the index was made.
        unreadable: path → why, of images that were left out.
        source: digest of the list of images that it was built from; None for any other.
    """
    return {
        "d3still": __version__,
        "embedding": description.embedding(),
        "networks": description.networks,
        "options": asdict(options),
        "recall": None,
        "unreadable": unreadable,
        "source": source,
    }


def _embedded(
    embedder: Embedder, images: list[GalleryImage]
) -> tuple[list[GalleryImage], list[np.ndarray], dict[str, str]]:
    """The readable images, their features in blocks, and why the others are not."""
    kept: list[GalleryImage] = []
    features: list[np.ndarray] = []
    unreadable: dict[str, str] = {}
    for batch in embed_images(embedder, images):
        kept += [images[position] for position in batch.positions]
        features.append(batch.features)
        unreadable |= {images[position].path: why for position, why in batch.unreadable.items()}
    if not kept:
        raise UserError(f"none of the {len(images)} images can be read; {next(iter(unreadable.values()))}")
    return kept, features, unreadable
