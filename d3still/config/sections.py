"""The whole schema: the core's sections, and those that distillers and optimizer builders bring with them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from d3still.config import defaults as core
from d3still.config.rules import Rule
from d3still.errors import UserError

#: Packages whose import registers sections. By name, like a user's EXPERIMENT.IMPORTS: config stands below them.
REGISTERING = ("d3still.distillers", "d3still.solver")
VALUE_TYPES = (bool, int, float, str, list)
_PACKAGE = f"{__name__.partition('.')[0]}."

_sections: dict[str, dict[str, Any]] = {}  # the package's own, then a user's
_rules: dict[str, Rule] = {}
_owners: dict[str, str] = {}


def add_section(name: str, defaults: Mapping[str, Any], owner: str = "") -> None:
    """Give every later config a section ``name`` with these keys and default values.

    A section that the schema or an earlier call already holds may be named again with the same defaults.

    Args:
        name: the section, e.g. ``"MyLoss"``.
        defaults: rows ``key: default`` or ``key: (default, rule)``, with a rule of `d3still.config.rules`; a mapping
            is a section within. The default's type is the key's type. Upper-case keys by custom.
        owner: the module of the part that the section configures.

    Raises:
        UserError: when the section exists with other defaults, or a default is of no config type.
    """
    values, rules = _read_rows(name, defaults)
    if not owner.startswith(_PACKAGE):
        schema()  # the package's own come first
    if name not in _sections:
        _sections[name], _owners[name] = values, owner
        _rules.update({f"{name}.{key}": rule for key, rule in rules.items()})
    elif _typed(_sections[name]) != _typed(values):
        raise UserError(f"config section {name} already exists with other defaults; choose another name")


def schema() -> Mapping[str, dict[str, Any]]:
    """All sections that there are by now, with their defaults; not to be changed."""
    for package in REGISTERING:
        importlib.import_module(package)
    return _sections


def known_defaults() -> dict[str, Any]:
    """Every key that a config has now, ``SECTION.KEY`` → default."""
    return dict(leaves(schema()))


def known_rules() -> Mapping[str, Rule]:
    """The rules of all keys that have one, by full key; not to be changed."""
    schema()
    return _rules


def owner_of(section: str) -> str:
    """The module in whose source a section's rows stand."""
    return _owners[section]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree of sections, by their full key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_rows(name: str, rows: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Rule]]:
    """A section's defaults, with lists for tuples, and rules by key; those of sections within as ``SECTION.KEY``."""
    if not name.isidentifier() or not all(isinstance(key, str) and key.isidentifier() for key in rows):
        raise UserError(f"config section {name!r}: section and keys must be plain names (letters, digits, _)")
    defaults: dict[str, Any] = {}
    rules: dict[str, Rule] = {}
    for key, value in rows.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Rule):
            value, rules[key] = value
        if isinstance(value, Mapping):
            value, inner = _read_rows(key, value)
            rules |= {f"{key}.{leaf}": rule for leaf, rule in inner.items()}
        elif isinstance(value, tuple):
            value = list(value)
        elif not isinstance(value, VALUE_TYPES):
            raise UserError(
                f"config section {name}: the default of {key} is a {type(value).__name__}; "
                "give a number, a text, True/False or a list"
            )
        defaults[key] = copy.deepcopy(value)
    return defaults, rules


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their types, so that 1, 1.0 and True differ."""
    return {key: _typed(value) if isinstance(value, Mapping) else (type(value), value) for key, value in values.items()}


for _name, _rows in core._C.items():
    add_section(_name, _rows, core.__name__)
