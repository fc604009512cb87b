"""Where resized images come from: the disk each time, or memory.

A source answers ``images(index, sizes)`` with one uint8 array (3, height, width) for each size, all from
one decode, or raises `ImageError`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from d3still.data.datasets.base import Sample
from d3still.data.image import MAX_PIXELS, ImageError, read_image
from d3still.data.transforms import resize
from d3still.errors import UserError
from d3still.memory import available_memory

logger = logging.getLogger(__name__)

Size = tuple[int, int]
MEMORY_SHARE = 0.8  # of the free memory; the rest is left to batches and activations
MAX_DECODE_THREADS = 8
_MIB = 2**20


class ImageSource(Protocol):
    """What a loader asks for images."""

    def images(self, index: int, sizes: Sequence[Size]) -> list[np.ndarray]:
        """One array (3, height, width) a size."""
        ...


class DiskImages:
    """Reads and resizes an image each time it is asked for; ``max_pixels`` is that of `read_image`."""

    def __init__(self, samples: Sequence[Sample], max_pixels: int = MAX_PIXELS) -> None:
        self._files = [(sample.path, sample.box) for sample in samples]
        self._max_pixels = max_pixels

    def images(self, index: int, sizes: Sequence[Size]) -> list[np.ndarray]:
        """One decode, one resize a distinct size."""
        image = read_image(*self._files[index], self._max_pixels)
        resized = {size: resize(image, size).numpy() for size in dict.fromkeys(sizes)}
        return [resized[size] for size in sizes]


class ImageCache:
    """All images of a list, decoded and resized once and kept in memory.

    Several loaders over the same samples share one cache: pass the same object to each. A size is loaded
    when the first of them needs it.

    Args:
        samples: the images.
        on_bad_image: "raise" stops at an unreadable image; "skip" keeps its error for whoever asks for it.
        max_pixels: that of `read_image`.
    """

    def __init__(self, samples: Sequence[Sample], *, on_bad_image: str = "raise", max_pixels: int = MAX_PIXELS) -> None:
        self._disk = DiskImages(samples, max_pixels)
        self.files = [(sample.path, sample.box) for sample in samples]
        self._raises = on_bad_image == "raise"
        self._pixels: dict[Size, np.ndarray] = {}
        self._bad: dict[int, str] = {}

    def load(self, sizes: Sequence[Size]) -> None:
        """Decode what is missing for these sizes, on all cores.

        Raises:
            UserError: they do not fit into memory, or an image cannot be read.
        """
        missing = [size for size in dict.fromkeys(sizes) if size not in self._pixels]
        if not missing:
            return
        needed = sum(3 * height * width for height, width in missing) * len(self.files)
        _check_fits(needed)
        logger.info("decoding %d images into memory, %.0f MiB", len(self.files), needed / _MIB)
        arrays = [np.zeros((len(self.files), 3, *size), dtype=np.uint8) for size in missing]

        def decode(index: int) -> None:
            try:
                for array, pixels in zip(arrays, self._disk.images(index, missing), strict=True):
                    array[index] = pixels
            except ImageError as error:
                if self._raises:
                    raise
                self._bad[index] = str(error)

        pool = ThreadPoolExecutor(min(usable_cores(), MAX_DECODE_THREADS))
        try:
            list(pool.map(decode, range(len(self.files))))  # a failed decode raises here
        finally:
            pool.shutdown(cancel_futures=True)
        self._pixels.update(zip(missing, arrays, strict=True))

    def images(self, index: int, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Views of the cached pixels; the sizes must have been loaded."""
        if index in self._bad:
            raise ImageError(self._bad[index])
        return [self._pixels[size][index] for size in sizes]


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_fits(needed: int) -> None:
    free = available_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise UserError(
            f"DATALOADER.CACHE: ram needs {needed / _MIB:.0f} MiB for the images, but only "
            f"{free / _MIB:.0f} MiB are free; set DATALOADER.CACHE: none"
        )
