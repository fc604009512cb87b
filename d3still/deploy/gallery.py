"""A gallery that answers: what is common to every engine that keeps features and searches them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3still import __version__
from d3still.deploy.embedder import Embedder, finite
from d3still.deploy.kinds import Blocks, IndexOptions
from d3still.deploy.listing import Box, GalleryImage, Stamp, absolute
from d3still.deploy.network_files import SHORT, Description
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


class Gallery(ABC):
    """Gallery features, searchable, and the images that they are of: what an engine must give.

    It knows which network embedded its images and refuses any other's features. Each image has an id, which is
    given once: it stays when others are removed, and is not given again when the image itself is.

    Attributes:
        header: what `header_of` made.
    """

    header: dict[str, Any]

    @abstractmethod
    def append(
        self, images: list[GalleryImage], blocks: Blocks, unreadable: dict[str, str], stamps: Sequence[Stamp]
    ) -> None:
        """Add features that ``blocks`` gives, of these images, from this gallery's own network."""

    @abstractmethod
    def remove(self, ids: Iterable[int]) -> list[GalleryImage]:
        """Take images out; the ids of the others stay, and these are not given again.

        Returns:
            The images that were removed.

        Raises:
            UserError: the gallery holds no image of such an id. It is then as it was.
        """

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
            topk: answers a query; fewer where the gallery is smaller.
            without_identity: images of this identity are passed over.
            without_camera: images of this camera are passed over.

        Raises:
            UserError: features of another width, not finite, or a topk below 1.
        """
        without = {"identity": without_identity, "camera": without_camera}
        without = {field: name for field, name in without.items() if name is not None}
        return self._find(self.checked(features, topk), topk, without)

    @abstractmethod
    def _find(self, features: np.ndarray, topk: int, without: dict[str, str]) -> list[list[Match]]:
        """What `find` gives; ``without`` has the names to pass over by field."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @property
    def width(self) -> int:
        """D of its features."""
        return self.header["embedding"]["feature_width"]

    @abstractmethod
    def image_of(self, id: int) -> GalleryImage | None:
        """The image of an id; None where the gallery holds none."""

    @abstractmethod
    def entries(self) -> Iterator[tuple[int, GalleryImage, Stamp]]:
        """Id, image and stamp of its file when it was embedded, of all images."""

    def missing(self, images: list[GalleryImage]) -> list[GalleryImage]:
        """Those of ``images`` that the index does not hold."""
        held = {(image.path, image.box) for _, image, _ in self.entries()}
        return [image for image in images if (image.path, image.box) not in held]

    def ids_of(self, paths: Iterable[str | Path] = (), identities: Iterable[str] = ()) -> list[int]:
        """The ids of all images of these files and of these identities.

        Raises:
            UserError: the index holds no such image.
        """
        by_path, by_identity = defaultdict(list), defaultdict(list)
        for id, image, _ in self.entries():
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
        rows = self.find(np.atleast_2d(features), topk)
        return rows[0] if features.ndim == 1 else rows

    def checked(self, features: np.ndarray, topk: int) -> np.ndarray:
        """Features (Q, D) as every engine takes them.

        Raises:
            UserError: features of another width, not finite, or a topk below 1.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise UserError(f"features of shape {features.shape} do not fit an index of (Q, {self.width})")
        if topk < 1:
            raise UserError(f"topk is {topk}; it must be at least 1")
        finite(features, [f"query {number}" for number in range(len(features))])
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
