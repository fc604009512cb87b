"""Config sections that distillers, the package's own and a user's, add to the schema."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from d3still.config.defaults import default_tree
from d3still.errors import UserError

VALUE_TYPES = (bool, int, float, str, list)

_added: dict[str, dict[str, Any]] = {}


def add_section(name: str, defaults: Mapping[str, Any]) -> None:
    """Give every later config a section ``name`` with these keys and default values.

    A section that the schema or an earlier call already holds may be named again with the same defaults.

    Args:
        name: the section, e.g. ``"MyLoss"``.
        defaults: key → default; the default's type is the key's type. Upper-case keys by custom.

    Raises:
        UserError: when the section exists with other defaults, or a default is of no config type.
    """
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    if not name.isidentifier() or not all(isinstance(key, str) and key.isidentifier() for key in values):
        raise UserError(f"config section {name!r}: section and keys must be plain names (letters, digits, _)")
    for key, value in values.items():
        if not isinstance(value, VALUE_TYPES):
            raise UserError(
                f"config section {name}: the default of {key} is a {type(value).__name__}; "
                "give a number, a text, True/False or a list"
            )
    known = _schema().get(name, _added.get(name))
    if known is None:
        _added[name] = copy.deepcopy(values)
    elif _typed(known) != _typed(values):
        raise UserError(f"config section {name} already exists with other defaults; choose another name")


def added_sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections added so far, as fresh copies."""
    return iter(copy.deepcopy(_added).items())


def known_defaults() -> dict[str, Any]:
    """Every key that a config has now, ``SECTION.KEY`` → default; not to be changed."""
    return {**_schema_defaults(), **dict(leaves(_added))}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree of sections, by their full key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.cache
def _schema() -> Mapping[str, Any]:
    return default_tree()


@functools.cache
def _schema_defaults() -> dict[str, Any]:
    return dict(leaves(_schema()))


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their types, so that 1, 1.0 and True differ."""
    return {key: _typed(value) if isinstance(value, Mapping) else (type(value), value) for key, value in values.items()}
