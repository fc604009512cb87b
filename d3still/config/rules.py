"""What values a key may have: in words, for people, and as a test. A rule stands beside its key's default."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from d3still.errors import UserError
from d3still.files import user_path


@dataclass(frozen=True)
class Rule:
    """One condition on a value of the right type.

    Attributes:
        meaning: what the value must be, so that "it must be …" reads well.
        holds: whether a value is that.
    """

    meaning: str
    holds: Callable[[Any], bool]


def one_of(*options: Any) -> Rule:
    """One of a few values."""
    return Rule(" | ".join(map(str, options)), lambda value: value in options)


POSITIVE = Rule("above 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)
AT_LEAST_1 = Rule("1 or more", lambda value: value >= 1)
AT_LEAST_2 = Rule("2 or more", lambda value: value >= 2)
FRACTION = Rule("between 0 and 1", lambda value: 0 <= value <= 1)
BELOW_1 = Rule("0 or more and below 1", lambda value: 0 <= value < 1)
TEMPERATURE = Rule("between 1e-6 and 1e6", lambda value: 1e-6 <= value <= 1e6)
ON_OFF_AUTO = one_of("auto", True, False)
STRIDE = one_of(1, 2)
STAGE = Rule("a stage from 1 to 4", lambda value: 1 <= value <= 4)

MIN_SIDE, MAX_SIDE = 8, 4096  # pixels: below, a backbone's strides leave nothing; above, no batch fits any memory
SIZE = Rule(
    f"[height, width] in pixels, each from {MIN_SIDE} to {MAX_SIDE}, e.g. [256, 256]",
    lambda value: len(value) == 2 and all(MIN_SIDE <= side <= MAX_SIDE for side in value),
)
PADDING = Rule(f"between 0 and {MAX_SIDE} pixels", lambda value: 0 <= value <= MAX_SIDE)
PIXELS = Rule("from 1 to 178956970, the most that Pillow opens", lambda value: 1 <= value <= 178_956_970)
THREE = Rule("three numbers, one a channel", lambda value: len(value) == 3)
THREE_POSITIVE = Rule("three numbers above 0", lambda value: len(value) == 3 and min(value) > 0)
EPOCHS = Rule("at least one epoch, 0 or more", lambda value: bool(value) and min(value) >= 0)
SEED = Rule("0 or more and below 2^32", lambda value: 0 <= value < 2**32)
CARD = Rule("one card's number, e.g. 0 (several cards: torchrun)", lambda value: value.isdecimal())
RE_RANKING = Rule(
    "[k1, k2, lambda] with k1 and k2 from 1 and lambda between 0 and 1",
    lambda value: min(value[:2]) >= 1 and 0 <= value[2] <= 1,
)


def _with_camera(pattern: str) -> bool:
    try:
        return not pattern or re.compile(pattern).groups >= 1
    except (re.error, OverflowError, RecursionError):
        return False


def _can_be_a_path(text: str) -> bool:
    try:
        return bool(user_path(text))
    except UserError:
        return False


def _is_below(name: str) -> bool:
    return _can_be_a_path(name) and not PurePath(name).is_absolute() and ".." not in PurePath(name).parts


PATH = Rule("a path: without a NUL character, and ~name only for a user who has a home folder here", _can_be_a_path)
RUN_NAME = Rule("a name below OUTPUT_DIR.ROOT_PATH, e.g. veri/mine", _is_below)
CAMERA_PATTERN = Rule("a regular expression with the camera in parentheses, e.g. '_c(\\d+)'", _with_camera)
