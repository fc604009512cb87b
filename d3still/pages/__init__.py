"""Pages that need nothing beside them: one base, every value escaped, pictures inside."""

from __future__ import annotations

import base64
import io

import jinja2
from markupsafe import Markup
from PIL import Image

from d3still.text import visible

QUALITY = 82  # of JPEG


def render(package: str, template: str, **values: object) -> str:
    """A page from a template in the folder ``templates`` of a package, which may extend ``base.html``.

    Args:
        package: its full name, ``d3still.reporting``.
        template: the file.
        values: what the template shows; all but `Markup` is shown as one line of `visible` text, never as markup.
    """
    places = [jinja2.PackageLoader(name) for name in (package, "d3still.pages")]
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader(places),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(values)


def picture_uri(picture: Image.Image, lossless: bool = False) -> Markup:
    """A picture to stand in a page: its ``data:`` address as JPEG, or as PNG."""
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    picture.save(buffer, kind, **({"optimize": True} if lossless else {"quality": QUALITY}))
    return Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}")
