"""Many images through one network: read ahead, in batches, with the unreadable ones set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from d3still.data import ImageError, Sample, read_image, test_loader
from d3still.data.image import crop
from d3still.deploy.embedder import Embedder
from d3still.deploy.listing import GalleryImage
from d3still.errors import UserError


class Embedded(NamedTuple):
    """What came of a batch of images.

    Attributes:
        positions: places in the list of those that have a feature.
        features: theirs, (n, D) float32.
        unreadable: place → why it could not be read.
    """

    positions: list[int]
    features: np.ndarray
    unreadable: dict[int, str]


def embed_images(embedder: Embedder, images: Sequence[GalleryImage], num_workers: int = 0) -> Iterator[Embedded]:
    """Features of all images in order, a batch at a time.

    Args:
        embedder: its batch size is the batches' size.
        images: read by the loader of testing, so that a feature is the one that testing would give.
        num_workers: upper bound of processes that read; 0 = a thread.

    Raises:
        UserError: a feature is not finite.
    """
    samples = [Sample(image.path, 0, 0, image.box) for image in images]
    loader = test_loader(
        samples,
        size=embedder.description.size,
        batch_size=embedder.batch_size,
        num_workers=num_workers,
        on_bad_image="skip",
    )
    try:
        for number, batch in enumerate(loader.epoch(0)):
            positions = batch.indices.tolist()
            asked = range(number * embedder.batch_size, min((number + 1) * embedder.batch_size, len(images)))
            unreadable = {position: _why(images[position]) for position in sorted(set(asked) - set(positions))}
            features = embedder.embed_pixels(batch.pixels) if positions else embedder.no_features()
            finite(features, [images[position].path for position in positions])
            yield Embedded(positions, features, unreadable)
    finally:
        loader.close()


def finite(features: np.ndarray, names: Sequence[str]) -> None:
    """Refuse features that are NaN or infinite.

    Raises:
        UserError: naming the first.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(f"the feature of {names[bad[0]]} is not finite; look for weights of a run that diverged")


def _why(image: GalleryImage) -> str:
    """Read an image once more for the reason that it cannot be."""
    try:
        pixels = read_image(image.path)
        if image.box is not None:
            crop(pixels, image.box, image.path)
    except ImageError as error:
        problem, _, _ = str(error).rpartition("; ")  # the rest is advice for training
        return problem or str(error)
    return f"{image.path} could not be read at first; build again to include it"
