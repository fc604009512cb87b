"""The whole schema: the core's sections, and those that distillers and optimizer builders bring with them."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from d3still.config import defaults as core
from d3still.config.rules import Rule, split_rows
from d3still.errors import UserError

#: Packages whose import registers sections. By name, like a user's EXPERIMENT.IMPORTS: config stands below them.
REGISTERING = ("d3still.distillers", "d3still.solver")
VALUE_TYPES = (bool, int, float, str, list)

_core, _rules = split_rows(core._C)
_own: dict[str, dict[str, Any]] = {}  # sections of this package's registered parts
_added: dict[str, dict[str, Any]] = {}  # sections of a user's
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
    values, rules = split_rows(defaults)
    values = _checked(name, values)
    package = __name__.partition(".")[0]
    own = owner.startswith(f"{package}.")
    known = _core.get(name, _own.get(name)) if own else schema().get(name, _added.get(name))
    if known is None:
        (_own if own else _added)[name] = values
        _rules.update({f"{name}.{key}": rule for key, rule in rules.items()})
        _owners[name] = owner
    elif _typed(known) != _typed(values):
        raise UserError(f"config section {name} already exists with other defaults; choose another name")


def added_sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections that a user's code added so far, as fresh copies."""
    return iter(copy.deepcopy(_added).items())


@functools.cache
def schema() -> Mapping[str, Any]:
    """The package's own sections with their defaults; not to be changed."""
    for package in REGISTERING:
        importlib.import_module(package)
    return _core | _own


def known_defaults() -> dict[str, Any]:
    """Every key that a config has now, ``SECTION.KEY`` → default; not to be changed."""
    return {**_schema_defaults(), **dict(leaves(_added))}


def known_rules() -> Mapping[str, Rule]:
    """The rules of all keys that have one, by full key."""
    known = known_defaults()
    return {key: rule for key, rule in _rules.items() if key in known}


def owner_of(section: str) -> str:
    """The module in whose source a section's rows stand."""
    return _owners.get(section, core.__name__)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree of sections, by their full key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.cache
def _schema_defaults() -> dict[str, Any]:
    return dict(leaves(schema()))


def _checked(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with lists for tuples; sections within likewise."""
    if not name.isidentifier() or not all(isinstance(key, str) and key.isidentifier() for key in values):
        raise UserError(f"config section {name!r}: section and keys must be plain names (letters, digits, _)")
    checked = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = _checked(key, value)
        elif isinstance(value, tuple):
            value = list(value)
        elif not isinstance(value, VALUE_TYPES):
            raise UserError(
                f"config section {name}: the default of {key} is a {type(value).__name__}; "
                "give a number, a text, True/False or a list"
            )
        checked[key] = copy.deepcopy(value)
    return checked


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their types, so that 1, 1.0 and True differ."""
    return {key: _typed(value) if isinstance(value, Mapping) else (type(value), value) for key, value in values.items()}
