"""Name → object tables that configs choose from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from d3still.config import add_section
from d3still.errors import UserError

T = TypeVar("T")


class Registry:
    """A table of named classes or functions, filled by a decorator.

    Args:
        kind: what the entries are, as it should read in an error ("dataset", "distiller").
        key: the config key that chooses among them, named in the error for an unknown one.
    """

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a class or function under ``name``.

        Raises:
            UserError: when another object already has that name.
        """

        def enter(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise UserError(f"a {self.kind} named '{name}' is already registered; choose another name")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> Any:
        """The entry called ``name``; a `UserError` that lists the known ones if there is none."""
        if name not in self._entries:
            raise UserError(unknown_name(f"{self.key} '{name}' is not a known {self.kind}", name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries


class ConfiguredRegistry(Registry):
    """A registry whose entries bring their own config section."""

    def register(
        self, name: str, defaults: Mapping[str, Any] | None = None, section: str | None = None
    ) -> Callable[[T], T]:
        """Decorator that enters a class or function under ``name``, and its settings into the schema.

        Args:
            name: the value of the config key that chooses among the entries.
            defaults: the rows of its config section, ``KEY: default`` or ``KEY: (default, rule)``; see `add_section`.
            section: the section's name where it is not ``name``.
        """

        def enter(entry: T) -> T:
            entry.section = section or name  # type: ignore[attr-defined]
            if defaults is not None:
                add_section(section or name, defaults, entry.__module__)
            return super(ConfiguredRegistry, self).register(name)(entry)

        return enter


def unknown_name(problem: str, name: str, known: Any) -> str:
    """``problem`` with the nearest known name, or all known names when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
    return f"{problem}; {hint}"
