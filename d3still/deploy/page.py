"""Search results as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from d3still.data import ImageError, read_image
from d3still.data.image import crop
from d3still.deploy.index import Match
from d3still.deploy.listing import Box, shown
from d3still.files import write_text
from d3still.text import visible

THUMBNAIL = 160  # longest side of a picture on the page
_QUALITY = 85


def write_page(path: Path, queries: Sequence[str], answers: Sequence[Sequence[Match]], title: str) -> None:
    """Write queries and their answers, with thumbnails inside, to one HTML file.

    Args:
        path: the file.
        queries: paths of the query images.
        answers: for each, what `GalleryIndex.search` gave.
        title: shown above; whatever it and the paths hold is shown as text.

    Raises:
        UserError: the file cannot be written.
    """
    sections = [
        (
            _figure(query, None, "query", None),
            [_figure(m.path, m.box, f"{rank}. {m.score:.4f}", m.identity) for rank, m in enumerate(row, start=1)],
        )
        for query, row in zip(queries, answers, strict=True)
    ]
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("d3still.deploy"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),  # whatever a name holds
        undefined=jinja2.StrictUndefined,
    )
    write_text(path, pages.get_template("answers.html").render(title=title, queries=sections))


def jpeg_thumbnail(path: str, box: Box | None, side: int) -> bytes:
    """A picture of an image, or of its box, within ``side`` × ``side`` pixels.

    Raises:
        ImageError: it cannot be read.
    """
    pixels = read_image(path)
    pixels = pixels if box is None else crop(pixels, box, path)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _figure(path: str, box: Box | None, heading: str, identity: str | None) -> dict[str, Any]:
    try:
        picture = base64.b64encode(jpeg_thumbnail(path, box, THUMBNAIL)).decode()
    except ImageError:  # it was indexed, but is gone by now
        picture = ""
    return {
        "picture": picture, "name": Path(path).name, "heading": heading, "identity": identity, "path": shown(path),
    }  # fmt: skip
