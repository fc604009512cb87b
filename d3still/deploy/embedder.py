"""Images to features, by the transform of training and testing, in whatever a user holds an image."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d3still.data import ImageError, Sample, read_image, test_loader
from d3still.data.image import DECODE_ERRORS, MAX_PIXELS, to_pixels
from d3still.data.sources import usable_cores
from d3still.data.transforms import resize
from d3still.deploy.listing import GalleryImage
from d3still.deploy.network_files import ONNX, SAFETENSORS, Description, open_network
from d3still.deploy.runners import Runner, onnx_runner, torch_runner
from d3still.errors import UserError
from d3still.files import user_path

BATCH_SIZE = 64
_MAX_READERS = 8  # threads that decode
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_FULL = 255
_KINDS = "a path, an array (H, W, 3), a PIL image or a tensor (3, H, W)"


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
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        embedder = cls(torch_runner(network, description, device), description, batch_size)
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
                (H, W, 3), a PIL image or a tensor (3, H, W): see `d3still.deploy.embedder.image_pixels`.

        Raises:
            UserError: naming the image that cannot be read, or what is wrong with its shape or numbers.
        """
        items, single = image_list(images)
        batches = [self.embed_pixels(pixels) for pixels in self._pixel_batches(iter(items))]
        features = np.concatenate([self.no_features(), *batches])
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


@dataclass(frozen=True)
class EmbeddedBatch:
    """What came of a batch of images.

    Attributes:
        positions: places in the list of those that have a feature.
        features: theirs, (n, D) float32.
        unreadable: place → why it could not be read.
    """

    positions: list[int]
    features: np.ndarray
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.positions) + len(self.unreadable)


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


def image_pixels(image: Any, max_pixels: int = MAX_PIXELS) -> Tensor:
    """One image as a uint8 tensor (3, H, W).

    Args:
        image: a path; a PIL image of any mode; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a tensor
            (H, W), (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors hold RGB, as uint8 or as floating
            numbers 0 … 1, which are rounded to uint8. A fourth channel is transparency, put over white.
        max_pixels: the most that is decoded, see `d3still.data.image.read_image`.

    Raises:
        ImageError: a file or PIL image that cannot be read.
        UserError: any other kind, shape, type or range, saying what is expected.
    """
    if isinstance(image, str | Path):
        return read_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return _of_pil(image, max_pixels)
    if isinstance(image, torch.Tensor):
        return _of_array(_channels_last(image.detach().cpu()).numpy(), tuple(image.shape))
    if isinstance(image, np.ndarray):
        return _of_array(image, image.shape)
    raise UserError(f"an image must be {_KINDS}, not {type(image).__name__}")


def image_list(images: Any) -> tuple[Iterable[Any], bool]:
    """The images one by one, and whether it was a single one.

    Args:
        images: one image, or an array (B, H, W, C), a tensor (B, C, H, W), or any iterable of images.
    """
    if isinstance(images, np.ndarray | torch.Tensor):
        single = images.ndim < 4
    else:
        single = isinstance(images, str | Path | Image.Image)
    if single:
        return [images], True
    if not isinstance(images, Iterable):
        raise UserError(f"images must be {_KINDS}, or several of these, not {type(images).__name__}")
    return images, False


def _of_pil(image: Image.Image, max_pixels: int) -> Tensor:
    if image.width * image.height > max_pixels:  # told from its header: an opened file is not decoded yet
        size = f"{image.width} × {image.height} pixels"
        raise ImageError(f"the image has {size}, more than DATALOADER.MAX_PIXELS {max_pixels} allows; make it smaller")
    _require_pixels((3, image.height, image.width))
    try:
        return to_pixels(image)
    except DECODE_ERRORS as error:
        name = getattr(image, "filename", "") or f"the {image.mode} image"
        raise ImageError(f"{name} cannot be decoded ({' '.join(str(error).split())}); replace it") from error


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim == 3 and tensor.shape[0] not in _CHANNELS:
        raise UserError(
            f"a tensor of shape {tuple(tensor.shape)} is no image (3, H, W); pass channels-last images as arrays"
        )
    return tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor


def _of_array(array: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise UserError(
            f"an array of shape {shape} is no image (H, W, 3); pass channels-first images as tensors (3, H, W)"
        )
    array = _bytes(array)
    _require_pixels(shape)
    if array.ndim == 3 and array.shape[2] == 3:
        return torch.from_numpy(np.array(array)).permute(2, 0, 1)
    return to_pixels(Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array)))


def _bytes(array: np.ndarray) -> np.ndarray:
    """uint8 as it is, floating numbers 0 … 1 as uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise UserError(f"an image must hold uint8 or floating numbers 0 … 1, not {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
        raise UserError(
            f"an image of floating numbers must lie in 0 … 1, not {array.min():.4g} … {array.max():.4g}; "
            "pass pixels 0 … 255 as uint8, and no normalised images"
        )
    return np.rint(array.astype(np.float64) * _FULL).astype(np.uint8)


def _require_pixels(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise UserError(f"an image of shape {shape} holds no pixel")
