"""Images to features, by the transform of training and testing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from d3still.data import ImageError, Sample, read_image, test_loader
from d3still.data.sources import usable_cores
from d3still.data.transforms import resize
from d3still.deploy.description import Description
from d3still.deploy.listing import GalleryImage
from d3still.deploy.network_files import ONNX, SAFETENSORS, open_network
from d3still.deploy.pixels import image_list, image_pixels
from d3still.deploy.runners import EmbeddingGraph, Runner, onnx_runner, torch_runner
from d3still.errors import UserError
from d3still.files import user_path

BATCH_SIZE = 64
_MAX_READERS = 8  # threads that decode


class Embedder:
    """A trained network as a function from images to features.

    Args:
        run: the network.
        description: what it is.
        batch_size: images in one forward pass.
    """

    def __init__(self, run: Runner, description: Description, batch_size: int = BATCH_SIZE) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        self._run, self.description, self.batch_size = run, description, batch_size
        self._open_query_network: Callable[[], Embedder] | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        part: str | None = "query",
        device: str | torch.device | None = None,
        batch_size: int = BATCH_SIZE,
        config: Mapping[str, Any] | None = None,
    ) -> Embedder:
        """The query or gallery network of a file.

        Args:
            path: a run's ``last.pth``, a published weight file, or an export (``.safetensors``, ``.onnx``,
                the latter run by onnxruntime).
            part: "query", "gallery", or None: the query network where the file holds one.
            device: where to run it; None = the GPU if there is one.
            batch_size: images in one forward pass.
            config: for published files, which carry no config: one from `d3still.config.load_config`.

        Raises:
            UserError: naming the file and what is wrong with it.
        """
        if Path(path).suffix == ONNX:
            return cls(*onnx_runner(user_path(path), part), batch_size)
        network, description = open_network(path, part, config)
        graph = EmbeddingGraph(network, description, normalize=False, l2=True)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        embedder = cls(torch_runner(graph, description, device), description, batch_size)
        if Path(path).suffix != SAFETENSORS and "query" in description.networks:  # an export holds one network
            embedder._open_query_network = lambda: cls.from_checkpoint(path, "query", device, batch_size, config)
        return embedder

    def query_network(self) -> Embedder | None:
        """The query network of the file that this network is from; None where the file holds none."""
        return self if self.description.part == "query" else self._open_query_network and self._open_query_network()

    def __call__(self, images: Any) -> np.ndarray:
        """Features, float32, each of length 1: (D,) for one image, (B, D) for several (also for a list of one).

        Args:
            images: one image or an iterable of images, of any size; an image is a path, an array
                (H, W, 3), a PIL image or a tensor (3, H, W): see `d3still.deploy.pixels.image_pixels`.

        Raises:
            UserError: naming the image that cannot be read, or what is wrong with its shape or numbers.
        """
        items, single = image_list(images)
        batches = [self.embed_pixels(pixels) for pixels in self._pixel_batches(iter(items))]
        if not batches:
            return self.no_features()
        features = np.concatenate(batches)
        return features[0] if single else features

    def embed_pixels(self, pixels: Tensor) -> np.ndarray:
        """Features (B, D) of uint8 pixels (B, 3, height, width) that have the network's own size."""
        return self._run(pixels).numpy()

    def no_features(self) -> np.ndarray:
        """Features of no image, (0, D)."""
        return np.empty((0, self.description.feature_width), np.float32)

    def _pixel_batches(self, items: Iterator[Any]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(min(usable_cores(), _MAX_READERS)) as pool:
            while batch := list(itertools.islice(items, self.batch_size)):
                yield torch.stack(list(pool.map(self._resized, batch)))

    def _resized(self, image: Any) -> Tensor:
        return resize(image_pixels(image, self.description.max_pixels), self.description.size)


class EmbeddedBatch(NamedTuple):
    """What came of a batch of images.

    Attributes:
        positions: places in the list of those that have a feature.
        features: theirs, (n, D) float32.
        unreadable: place → why it could not be read.
    """

    positions: list[int]
    features: np.ndarray
    unreadable: dict[int, str]


def embed_images(embedder: Embedder, images: Sequence[GalleryImage], num_workers: int = 0) -> Iterator[EmbeddedBatch]:
    """Features of all images in order, a batch at a time.

    Args:
        embedder: its batch size is the batches' size.
        images: read by the loader of testing, so that a feature is the one that testing would give.
        num_workers: upper bound of processes that read; 0 = a thread.

    Raises:
        UserError: a feature is not finite.
    """
    most = embedder.description.max_pixels
    samples = [Sample(image.path, 0, 0, image.box) for image in images]
    loader = test_loader(
        samples,
        size=embedder.description.size,
        batch_size=embedder.batch_size,
        num_workers=num_workers,
        on_bad_image="skip",
        max_pixels=most,
    )
    try:
        for number, batch in enumerate(loader.epoch(0)):
            positions = batch.indices.tolist()
            asked = range(number * embedder.batch_size, min((number + 1) * embedder.batch_size, len(images)))
            unreadable = {position: _why(images[position], most) for position in sorted(set(asked) - set(positions))}
            features = embedder.embed_pixels(batch.pixels) if positions else embedder.no_features()
            finite(features, [images[position].path for position in positions])
            yield EmbeddedBatch(positions, features, unreadable)
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


def _why(image: GalleryImage, max_pixels: int) -> str:
    """Read an image once more for the reason that it cannot be."""
    try:
        read_image(image.path, image.box, max_pixels)
    except ImageError as error:
        problem, _, _ = str(error).rpartition("; ")  # the rest is advice for training
        return problem or str(error)
    return f"{image.path} could not be read at first; build again to include it"
