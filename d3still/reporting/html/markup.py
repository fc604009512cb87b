"""Markup made safely: every text and attribute that comes from outside passes through here."""

from __future__ import annotations

import html
import unicodedata

# Control characters, halves of surrogate pairs (undecodable file names), and invisible ones that reorder text.
UNSAFE_CATEGORIES = ("Cc", "Cs", "Cf", "Co", "Cn")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Safe(str):
    """Markup that is already escaped."""

    __slots__ = ()


def escape(value: object) -> Safe:
    """A value as text for element content and attributes; `Safe` markup stays as it is."""
    if isinstance(value, Safe):
        return value
    text = str(value)
    if not text.isascii() or not text.isprintable():
        text = "".join(REPLACEMENT if unicodedata.category(c) in UNSAFE_CATEGORIES else c for c in text)
    return Safe(html.escape(text, quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Safe:
    """An element; content and attributes are escaped.

    An attribute's name may end in ``_`` where Python reserves it, and ``_`` within it becomes ``-``. An
    attribute that is None is left out; numbers are rounded to hundredths, enough for pixels.
    """
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Safe(f"<{name}{parts}>{''.join(map(escape, content))}</{name}>")


def empty_tag(name: str, /, **attributes: object) -> Safe:
    """An element that has no content and no closing tag, such as ``img``."""
    return Safe(tag(name, **attributes).removesuffix(f"</{name}>"))


def join(*parts: object) -> Safe:
    """Parts one after the other, escaped."""
    return Safe("".join(map(escape, parts)))


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
