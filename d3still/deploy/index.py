"""A gallery that answers: features of its images in a FAISS index, and the images that they are of."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3still import __version__
from d3still.deploy.description import SHORT, Description
from d3still.deploy.embedder import Embedder, embed_images, finite
from d3still.deploy.index_file import load_index_file, save_index_file
from d3still.deploy.kinds import Blocks, IndexOptions, add, new_index, train, tune
from d3still.deploy.listing import GalleryImage, list_images
from d3still.errors import UserError

logger = logging.getLogger(__name__)

REBUILD = (
    "features of different networks cannot be compared. After ACD (or any training) the gallery must be embedded "
    "again: tools/index_net.py build --weights … --images … --out …"
)


class Match(NamedTuple):
    """One answer: an image of the gallery and its score, the cosine between its feature and the query's."""

    score: float
    path: str
    identity: str | int | None
    box: tuple[int, int, int, int] | None = None


class GalleryIndex:
    """Gallery features, searchable, and the images that they are of.

    It knows which network embedded its images and refuses any other's features.

    Args:
        index: a trained FAISS index over inner products.
        images: what its rows are of, in order.
        header: what `header_of` made.
    """

    def __init__(self, index: Any, images: list[GalleryImage], header: dict[str, Any]) -> None:
        if index.ntotal != len(images):
            raise UserError(f"the index holds {index.ntotal} features of {len(images)} images; build it again")
        self.index, self.images, self.header = index, images, header

    @classmethod
    def build(
        cls, embedder: Embedder, images: str | Path | Iterable[Any], options: IndexOptions | None = None
    ) -> GalleryIndex:
        """Embed a gallery in memory; for large ones see `d3still.deploy.build_index`, which can be resumed.

        Args:
            embedder: of the gallery network.
            images: a folder, a CSV file, or paths: see `d3still.deploy.listing.list_images`. Unreadable ones
                are left out, logged, and listed in ``header["unreadable"]``.
            options: the kind of index; exact by default.

        Raises:
            UserError: there is no image, or none that can be read.
        """
        options = options or IndexOptions()
        kept, features, unreadable = _embedded(embedder, list_images(images))
        index = new_index(options, embedder.description.feature_width, len(kept))
        header = header_of(embedder.description, options, unreadable)
        fill(index, lambda: iter(features), len(kept), options, header)
        return cls(index, kept, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GalleryIndex:
        """Read an index file.

        Raises:
            UserError: when it is missing, of another version, cut short or damaged.
        """
        path = Path(path).expanduser()
        header, columns, index = load_index_file(path)
        boxes = (None if box is None else tuple(box) for box in columns["boxes"])
        rows = zip(columns["paths"], columns["identities"], boxes, strict=True)
        try:
            return cls(index, [GalleryImage(*row) for row in rows], header)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file; until it is complete, a former file of that name stays as it was.

        Raises:
            UserError: when it cannot be written.
        """
        columns = {
            "paths": [image.path for image in self.images],
            "identities": [image.identity for image in self.images],
            "boxes": [image.box for image in self.images],
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
        kept, features, unreadable = _embedded(embedder, new)
        self.append(kept, lambda: iter(features), unreadable)
        return kept

    def missing(self, images: list[GalleryImage]) -> list[GalleryImage]:
        """Those of ``images`` that the index does not hold."""
        held = {(image.path, image.box) for image in self.images}
        return [image for image in images if (image.path, image.box) not in held]

    def append(self, images: list[GalleryImage], blocks: Blocks, unreadable: dict[str, str]) -> None:
        """Append features that ``blocks`` gives, of these images, from this index's own network."""
        add(self.index, blocks)
        self.images.extend(images)
        added = {image.path for image in images}
        reasons = {path: why for path, why in self.header["unreadable"].items() if path not in added}
        self.header |= {"unreadable": reasons | unreadable, "source": None}

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

    def search_features(self, features: np.ndarray, topk: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions in ``images``, both (Q, topk), of features (Q, D) of length 1; −1 where there are fewer.

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
        return self.index.search(features, min(topk, len(self.images)))

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

    def _matches(self, features: np.ndarray, topk: int) -> list[list[Match]]:
        scores, positions = self.search_features(features, topk)
        return [
            [Match(float(score), *self.images[place]) for score, place in zip(*row, strict=True) if place >= 0]
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


def fill(index: Any, blocks: Blocks, count: int, options: IndexOptions, header: dict[str, Any]) -> None:
    """Train an empty index, add all features, and measure its recall into the header."""
    train(index, blocks, count)
    add(index, blocks)
    measure(index, blocks, options, header)


def measure(index: Any, blocks: Blocks, options: IndexOptions, header: dict[str, Any]) -> None:
    """Choose the effort of a search and put the recall that it reaches into the header."""
    recall = tune(index, blocks, options)
    if recall is not None:
        header["recall"] = asdict(recall)
        logger.info("recall@%d against exact search: %.3f, looking at %d", recall.at, recall.value, recall.effort)


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
