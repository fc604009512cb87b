"""Small images inside the page, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import logging

import torch
from PIL import Image

from d3still.data import ImageError, Sample
from d3still.reporting.html.markup import Safe, empty_tag, tag
from d3still.reporting.pictures import network_view, thumbnail

logger = logging.getLogger(__name__)

THUMBNAIL = 72  # pixels, as large as the page shows them
QUALITY = 82  # of JPEG
BUDGET = 10_000_000  # bytes of all images in a page, so that with everything else it stays below 15 MB


class Album:
    """Makes ``img`` elements and counts their bytes.

    An image that cannot be read becomes an empty frame with its name; it is reported once.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget
        self._made: dict[tuple[Sample, object], str | None] = {}

    @property
    def full(self) -> bool:
        """Whether the budget is used up."""
        return self.left <= 0

    def query(self, sample: Sample, size: tuple[int, int], alt: str) -> Safe:
        """The query at the pixels that the query network gets, losslessly."""
        return self._image(sample, size, alt)

    def gallery(self, sample: Sample, alt: str) -> Safe:
        """The whole image, small."""
        return self._image(sample, None, alt)

    def _image(self, sample: Sample, size: tuple[int, int] | None, alt: str) -> Safe:
        key = (sample, size)
        if key not in self._made:
            self._made[key] = _data_uri(sample, size)
        uri = self._made[key]
        if uri is None:
            return tag("span", class_="gone", role="img", aria_label=f"{alt} (cannot be read)")
        self.left -= len(uri)  # a repeated image is repeated in the page
        return empty_tag("img", src=Safe(uri), alt=alt, decoding="async")


def _data_uri(sample: Sample, size: tuple[int, int] | None) -> str | None:
    try:
        pixels = thumbnail(sample, THUMBNAIL) if size is None else network_view(sample, size)
    except ImageError as error:
        logger.warning("%s", error)
        return None
    return encoded(pixels, lossless=size is not None)


def encoded(pixels: torch.Tensor, lossless: bool) -> str:
    """A data URI of uint8 pixels (3, h, w): PNG, or JPEG."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=QUALITY)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
