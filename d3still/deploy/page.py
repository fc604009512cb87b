"""Search results as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from d3still.data import ImageError, read_image
from d3still.data.image import crop
from d3still.deploy.index import Match
from d3still.deploy.listing import shown
from d3still.files import write_text

THUMBNAIL = 160  # longest side of a picture on the page
_QUALITY = 85
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
section { display: flex; gap: 1.5rem; align-items: flex-start; margin: 2rem 0; }
ol { display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; margin: 0; padding: 0; }
figure { margin: 0; width: 10rem; }
img, .none { width: 10rem; height: 10rem; object-fit: contain; background: #8882; border-radius: 4px; }
.none { display: grid; place-items: center; }
.query { border-right: 2px solid #8886; padding-right: 1.5rem; }
figcaption { font-size: 0.8rem; overflow-wrap: anywhere; }
"""


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
    sections = [_section(query, matches) for query, matches in zip(queries, answers, strict=True)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    head += f"<style>{_STYLE}</style>"
    body = f"<h1>{_text(title)}</h1>{''.join(sections)}"
    write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n')


def _section(query: str, matches: Sequence[Match]) -> str:
    answers = "".join(
        f"<li>{_figure(match.path, match.box, f'{rank}. {match.score:.4f}', match.identity)}</li>"
        for rank, match in enumerate(matches, start=1)
    )
    return f'<section><div class="query">{_figure(query, None, "query", None)}</div><ol>{answers}</ol></section>'


def _figure(path: str, box: tuple[int, int, int, int] | None, heading: str, identity: str | int | None) -> str:
    known = "" if identity is None else f"<br>identity {_text(identity)}"
    caption = f"<b>{_text(heading)}</b>{known}<br>{_text(shown(path))}"
    return f"<figure>{_picture(path, box)}<figcaption>{caption}</figcaption></figure>"


def _picture(path: str, box: tuple[int, int, int, int] | None) -> str:
    try:
        pixels = read_image(path)
        pixels = pixels if box is None else crop(pixels, box, path)
    except ImageError:  # it was indexed, but is gone by now
        return '<div class="none">no longer there</div>'
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{_text(Path(path).name)}">'


def _text(value: object) -> str:
    """Any value as text that HTML cannot mistake for markup; names that are no Unicode keep their bytes visible."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())
