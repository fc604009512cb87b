"""Whatever a user holds an image in, as the pixels that reading its file would give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d3still.data import ImageError, read_image
from d3still.data.image import DECODE_ERRORS, MAX_PIXELS, to_pixels
from d3still.errors import UserError

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_FULL = 255
_KINDS = "a path, an array (H, W, 3), a PIL image or a tensor (3, H, W)"


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
    try:
        pixels = to_pixels(image)
    except DECODE_ERRORS as error:
        name = getattr(image, "filename", "") or f"the {image.mode} image"
        raise ImageError(f"{name} cannot be decoded ({' '.join(str(error).split())}); replace it") from error
    return _checked(pixels, tuple(pixels.shape))


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
    if array.ndim == 3 and array.shape[2] == 3:
        return _checked(torch.from_numpy(np.array(array)).permute(2, 0, 1), shape)
    _checked(array, shape)
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


def _checked(pixels: Any, shape: tuple[int, ...]) -> Any:
    if 0 in pixels.shape:
        raise UserError(f"an image of shape {shape} holds no pixel")
    return pixels
