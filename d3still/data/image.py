"""Reading one image file into three uint8 channels.

The one policy, for training, query, gallery and export alike: the first frame, turned upright as its EXIF
orientation says, any colour mode to RGB, transparency over white, 16 bits a channel scaled to 8.
"""

from __future__ import annotations

import io
import logging
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from d3still.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
READ_TRIES = 3  # a network file system fails for a moment; a broken file fails each time
RETRY_SECONDS = 0.1
EXIF_ORIENTATION = 0x0112
WIDE_TO_BYTE = 257  # 65535 / 255
UPRIGHT = {  # EXIF 2.3, tag Orientation: what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's decoders report a broken file in many ways; each of these was raised by some damaged file.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, AttributeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class ImageError(UserError):
    """An image that cannot be read; what ``DATALOADER.ON_BAD_IMAGE: skip`` skips."""


def is_image_name(path: Path) -> bool:
    """Whether a file's name is that of an image: a known suffix in any case, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(path: str | Path) -> torch.Tensor:
    """The image as a uint8 RGB tensor of shape (3, H, W), with the channels last in memory.

    Raises:
        ImageError: the file is missing, empty, truncated or no image; the message names it.
    """
    data = _read_bytes(Path(path))
    if not data:
        raise ImageError(f"{path} is empty; replace the file or set DATALOADER.ON_BAD_IMAGE: skip")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_pixels(image)
    except DECODE_ERRORS as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise ImageError(
            f"{path} cannot be decoded ({reason}); replace the file or set DATALOADER.ON_BAD_IMAGE: skip"
        ) from error


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An opened image as `read_image` gives its file: uint8 RGB (3, H, W), the channels last in memory.

    Raises:
        DECODE_ERRORS: what Pillow raises where the image is damaged.
    """
    image.load()
    return torch.from_numpy(np.array(_upright(_to_rgb(image), image))).permute(2, 0, 1)


def crop(image: torch.Tensor, box: tuple[int, int, int, int], path: str | Path) -> torch.Tensor:
    """The part (left, top, right, bottom) of an image (3, H, W), cut off at its edges.

    Raises:
        ImageError: nothing of the box lies in the image, which ``path`` names.
    """
    left, top, right, bottom = (max(0, edge) for edge in box)
    part = image[:, top:bottom, left:right]
    if not part.numel():
        height, width = image.shape[1:]
        raise ImageError(f"{path}: the box {box} holds nothing of the image of {width} × {height} pixels")
    return part


def _read_bytes(path: Path) -> bytes:
    for attempt in range(READ_TRIES):
        try:
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            failure: OSError = error  # these do not pass by waiting
            break
        except OSError as error:
            failure = error
            if attempt + 1 < READ_TRIES:
                logger.warning("%s: %s; trying again", path, _one_line(error))
                time.sleep(RETRY_SECONDS)
    raise ImageError(
        f"{path} cannot be read ({failure.strerror or _one_line(failure)}); "
        "restore the file or set DATALOADER.ON_BAD_IMAGE: skip"
    ) from failure


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 255 * WIDE_TO_BYTE)
        return Image.fromarray(((wide + WIDE_TO_BYTE // 2) // WIDE_TO_BYTE).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("LA") if image.mode == "La" else image
        layer = layer.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return pixels  # damaged metadata of a sound image: there is no orientation to apply
    return pixels.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else pixels


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
