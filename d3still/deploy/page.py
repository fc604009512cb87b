"""Search results as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from d3still.data import ImageError, read_image
from d3still.deploy.gallery import Match
from d3still.deploy.listing import Box, shown
from d3still.files import write_text
from d3still.pages import picture_uri, render

THUMBNAIL = 160  # longest side of a picture on the page


def write_page(path: Path, queries: Sequence[str], answers: Sequence[Sequence[Match]], title: str) -> None:
    """Write queries and their answers, with thumbnails inside, to one HTML file.

    Args:
        path: the file.
        queries: paths of the query images.
        answers: for each, what `Gallery.search` gave.
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
    write_text(path, render("d3still.deploy", "answers.html", title=title, queries=sections))


def thumbnail(path: str, box: Box | None, side: int) -> Image.Image:
    """An image, or its box, within ``side`` × ``side`` pixels.

    Raises:
        ImageError: it cannot be read.
    """
    image = Image.fromarray(read_image(path, box).permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((side, side))
    return image


def _figure(path: str, box: Box | None, heading: str, identity: str | None) -> dict[str, Any]:
    try:
        picture = picture_uri(thumbnail(path, box, THUMBNAIL))
    except ImageError:  # it was indexed, but is gone by now
        picture = None
    return {
        "picture": picture, "name": Path(path).name, "heading": heading, "identity": identity, "path": shown(path),
    }  # fmt: skip
