"""Words of a command line where lists and KEY VALUE pairs follow each other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def split_words(words: Sequence[str], belongs: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The words up to the first that does not belong, and the rest.

    ``--seeds 2024 2025 SOLVER.MAX_EPOCHS 2`` gives argparse four seeds; this tells two of them from a setting.
    """
    count = next((i for i, word in enumerate(words) if not belongs(word)), len(words))
    return list(words[:count]), list(words[count:])


def is_whole_number(word: str) -> bool:
    """Whether a word is a seed."""
    return word.isascii() and word.isdigit()


def is_key(word: str) -> bool:
    """Whether a word looks like a config key, ``SECTION.KEY``; numbers, images and config files do not."""
    from d3still.data.image import is_image_name  # here, since a help text needs no torch

    if is_image_name(Path(word)):
        return False
    section, dot, key = word.partition(".")
    return bool(dot) and section.isidentifier() and key.replace(".", "").isidentifier() and key[-1:].isupper()


def count(text: str, least: int = 1) -> int:
    """A whole number of at least ``least``, for argparse."""
    if not is_whole_number(text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
    return int(text)
