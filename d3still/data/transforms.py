"""Resizing and augmentation, on uint8 pixels.

Training: resize to the exact size → horizontal flip → zero padding → random crop back → random erasing.
The erased box is only drawn here; it is filled after normalising, on the device (`Normalizer`).
Testing: resize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from d3still.data.draws import uniforms

# torchvision.transforms.RandomErasing's defaults
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10

_FLIP, _TOP, _LEFT, _ERASE, _BOXES = range(5)  # columns of an image's random numbers
_NUMBERS = _BOXES + 4 * ERASE_TRIES


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear antialiased resize of a uint8 image (3, H, W) to exactly ``size`` (height, width)."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=tuple(size), mode="bilinear", antialias=True)[0]


def resize_within(image: torch.Tensor, side: int) -> torch.Tensor:
    """`resize`, its proportions kept, so that the longer side is ``side``."""
    height, width = image.shape[1:]
    scale = side / max(height, width)
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


@dataclass(frozen=True)
class View:
    """How one image becomes one training input.

    Attributes:
        size: height and width.
        padding: zeros on each side before the crop back to ``size``.
        flip_prob: probability of a horizontal flip.
        erase_prob: probability of random erasing.
        stream: numbers apart the views that draw independently.
    """

    size: tuple[int, int]
    padding: int = 0
    flip_prob: float = 0.0
    erase_prob: float = 0.0
    stream: int = 0

    def draw(self, seed: int, epoch: int, positions: Sequence[int]) -> Draws:
        """The random choices for the images at these positions of the epoch."""
        numbers = uniforms(seed, epoch, self.stream, positions, _NUMBERS)
        shifts = np.floor(numbers[:, [_TOP, _LEFT]] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        boxes = draw_boxes(numbers[:, _BOXES:], self.size)
        boxes[numbers[:, _ERASE] >= self.erase_prob] = 0
        return Draws(numbers[:, _FLIP] < self.flip_prob, shifts, boxes)


@dataclass(frozen=True)
class Draws:
    """Random choices for B images: ``flips`` (B,), ``shifts`` (B, 2) of the crop down and to the right,
    ``boxes`` (B, 4) to erase as top, left, height, width; height 0 erases nothing."""

    flips: np.ndarray
    shifts: np.ndarray
    boxes: np.ndarray


def draw_boxes(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Random-erasing boxes (B, 4) from uniform numbers (B, 4 · tries), as torchvision draws them.

    A try's area is uniform and its ratio log-uniform; the first try that is smaller than the image in both
    directions counts, and an image whose every try fails gets a box of height 0.
    """
    height, width = size
    area, ratio, top, left = np.moveaxis(numbers.reshape(len(numbers), -1, 4), 2, 0)
    area = height * width * (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * area)
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    ratio = np.exp(low + (high - low) * ratio)
    rows, columns = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (rows < height) & (columns < width)
    boxes = np.stack(
        [np.floor(top * (height - rows + 1)), np.floor(left * (width - columns + 1)), rows, columns], axis=-1
    )
    first = np.argmax(fits, axis=1)
    chosen = boxes[np.arange(len(boxes)), first].astype(np.int64)
    chosen[~fits.any(axis=1)] = 0
    return chosen


def place(source: np.ndarray, target: np.ndarray, flip: bool, down: int, right: int) -> None:
    """Flip, pad and crop in one copy: ``target`` (3, H, W), zeros before, gets ``source`` seen through a
    window moved ``down`` and ``right``; what lies outside stays zero."""
    rows, source_rows = _overlap(source.shape[1], down)
    columns, source_columns = _overlap(source.shape[2], right)
    if flip:
        source = source[:, :, ::-1]
    target[:, rows, columns] = source[:, source_rows, source_columns]


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Where a window moved by ``shift`` meets what it looks at: in its own terms, and in the other's."""
    meets = max(0, length - abs(shift))
    start, source_start = max(0, -shift), max(0, shift)
    return slice(start, start + meets), slice(source_start, source_start + meets)
