"""Names and messages from outside, made fit to be shown: on a terminal, in a table, on a page."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"  # invisible, but Persian names and composed emoji need them, and they move nothing


def visible(value: object) -> str:
    r"""A value as one line of visible text.

    What would break the line, command the terminal, reorder the letters around it or have no place in a file
    (line ends, escape codes, direction marks, halves of surrogate pairs) is shown as Python writes it: ``\n``,
    ``\x1b``, ``\u202e``, ``\udcff``.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(letter if _is_shown(letter) else letter.encode("unicode_escape").decode() for letter in text)


def file_name(path: object) -> str:
    """The last part of a path written on any system."""
    return str(path).replace("\\", "/").rpartition("/")[2]


def some(items: Iterable[object], most: int = 3) -> str:
    """The first few items for a message, and a sign that there are more."""
    listed = list(items)
    return ", ".join(map(str, listed[:most])) + (", …" if len(listed) > most else "")


class VisibleFormatter(logging.Formatter):
    """Log lines of `visible` text; a traceback below one keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return visible(super().formatMessage(record))


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"
