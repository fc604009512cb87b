"""Images to features, by the transform of training and testing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3still.data.sources import usable_cores
from d3still.data.transforms import resize
from d3still.deploy.description import Description
from d3still.deploy.graph import EmbeddingGraph
from d3still.deploy.network_files import ONNX, open_network
from d3still.deploy.pixels import image_list, image_pixels
from d3still.deploy.runners import Runner, onnx_runner, torch_runner
from d3still.errors import UserError

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
            return cls(*onnx_runner(Path(path).expanduser(), part), batch_size)
        network, description = open_network(path, part, config)
        graph = EmbeddingGraph(network, description, normalize=False, l2=True)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(torch_runner(graph, description, device), description, batch_size)

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
        return resize(image_pixels(image), self.description.size)
