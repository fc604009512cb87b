"""Reading one image file into three uint8 channels.

The one policy, for training, query, gallery and export alike: the first frame, turned upright as its EXIF
orientation says, any colour mode to RGB, transparency over white, 16 bits a channel scaled to 8.
"""

from __future__ import annotations

import errno
import io
import logging
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from d3still.errors import UserError
from d3still.files import require_regular

logger = logging.getLogger(__name__)

Box = tuple[int, int, int, int]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, and for some it starts other programs
MAX_PIXELS = 2**26  # 8192 × 8192; decoding one takes half a GiB
MOST_PIXELS = 178_956_970  # Pillow's own bound, above which it opens nothing
READ_TRIES = 3  # a network file system fails for a moment; a broken file fails each time
RETRY_SECONDS = 0.1
EXIF_ORIENTATION = 0x0112
WIDE_TO_BYTE = 257  # 65535 / 255
UPRIGHT = {  # EXIF 2.3, tag Orientation: step through rows, step through columns, whether they change places
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (-1, 1, True),
    7: (-1, -1, True),
    8: (1, -1, True),
}
# Pillow's decoders report a broken file in many ways; each of these was raised by some damaged file.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, AttributeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # what a network file system gets over
_INSTEAD = "or set DATALOADER.ON_BAD_IMAGE: skip"
_STRIP = 2**20  # pixels that are converted at a time
_BYTES_A_PIXEL, _BYTES_BESIDE = 8, 2**26  # of the largest files that can be images: four channels of 16 bits
_REDUCTIONS = (2, 4, 8)  # by which the JPEG decoder shrinks an image while it decodes

# MAX_PIXELS takes the place of Pillow's warning, which comes at a bound of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(UserError):
    """An image that cannot be read; what ``DATALOADER.ON_BAD_IMAGE: skip`` skips."""


def is_image_name(path: Path) -> bool:
    """Whether a file's name is that of an image: a known suffix in any case, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(path: str | Path, box: Box | None = None, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The image as a uint8 RGB tensor of shape (3, H, W), with the channels last in memory.

    Args:
        path: of the file.
        box: the part to give (left, top, right, bottom, in pixels of the upright image), if not all.
        max_pixels: the most that is decoded, at most `MOST_PIXELS`. The file's header tells before anything is
            decoded; a larger JPEG is decoded at a half, a quarter or an eighth of its size, any other is refused.

    Raises:
        ImageError: the file is missing, empty, no regular file, truncated, too large or no image, or the box holds
            nothing of it; the message names the file.
    """
    data = _read_bytes(Path(path), max_pixels)
    if not data:
        raise ImageError(f"{path} is empty; replace the file {_INSTEAD}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            reduction = _reduce(image, max_pixels)
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"{path} has {image.width} × {image.height} pixels, more than DATALOADER.MAX_PIXELS {max_pixels} "
                    f"allows; make it smaller, raise the key {_INSTEAD}"
                )
            pixels = to_pixels(image)
    except DECODE_ERRORS as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise ImageError(f"{path} cannot be decoded ({reason}); replace the file {_INSTEAD}") from error
    if box is None:
        return pixels
    left, top, right, bottom = box
    scaled = left // reduction, top // reduction, -(-right // reduction), -(-bottom // reduction)
    return crop(pixels, scaled, path)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An opened image as `read_image` gives its file: uint8 RGB (3, H, W), the channels last in memory.

    Raises:
        DECODE_ERRORS: what Pillow raises where the image is damaged.
    """
    image.load()
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // max(1, width))  # a large image is never whole in a second and third form
    for top in range(0, height, rows):
        part = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(_to_rgb(part))
    return torch.from_numpy(_upright(pixels, image)).permute(2, 0, 1)


def crop(image: torch.Tensor, box: Box, path: str | Path) -> torch.Tensor:
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


def _reduce(image: Image.Image, max_pixels: int) -> int:
    """Have a JPEG above the limit decoded smaller, by a factor that is returned; 1 = as it is."""
    width, height = image.size
    if width * height > max_pixels and image.format in ("JPEG", "MPO"):
        for factor in _REDUCTIONS:
            if -(-width // factor) * -(-height // factor) <= max_pixels:
                image.draft(None, (width // factor, height // factor))
                return factor
    return 1


def _read_bytes(path: Path, max_pixels: int) -> bytes:
    for attempt in range(READ_TRIES):
        try:
            if require_regular(path) > _BYTES_A_PIXEL * max_pixels + _BYTES_BESIDE:
                raise OSError(errno.EFBIG, "larger than any image that DATALOADER.MAX_PIXELS allows")
            return path.read_bytes()
        except OSError as error:
            failure = error
            if error.errno not in _PASSING:
                break
            if attempt + 1 < READ_TRIES:
                logger.warning("%s: %s; trying again", path, _one_line(error))
                time.sleep(RETRY_SECONDS)
    raise ImageError(
        f"{path} cannot be read ({failure.strerror or _one_line(failure)}); restore the file {_INSTEAD}"
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


def _upright(pixels: np.ndarray, source: Image.Image) -> np.ndarray:
    try:
        orientation = source.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return pixels  # damaged metadata of a sound image: there is no orientation to apply
    if orientation not in UPRIGHT:
        return pixels
    rows, columns, swap = UPRIGHT[orientation]
    turned = pixels[::rows, ::columns]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if swap else turned)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
