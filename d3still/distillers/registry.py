"""The table of distillers. ``DISTILLERS.register`` is all that a new baseline needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from d3still.config import add_section
from d3still.registry import Registry

T = TypeVar("T")


class DistillerRegistry(Registry):
    """A registry whose entries have a config section each."""

    def register(
        self, name: str, defaults: Mapping[str, Any] | None = None, section: str | None = None
    ) -> Callable[[T], T]:
        """Decorator that enters a distiller as ``DISTILLER.TYPE: name``.

        Args:
            name: the value of ``DISTILLER.TYPE`` (stage 1) and ``ACD.BASELINE`` (stage 2).
            defaults: the keys of its config section with their defaults, for a section that the schema lacks.
            section: the section's name where it is not ``name``.
        """
        if defaults is not None:
            add_section(section or name, defaults)

        def enter(entry: T) -> T:
            entry.section = section or name  # type: ignore[attr-defined]
            return super(DistillerRegistry, self).register(name)(entry)

        return enter


DISTILLERS = DistillerRegistry("distiller", "DISTILLER.TYPE")


def without_idle_sections(*configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Configs without the sections that none of their runs reads, to be compared by what is left.

    Args:
        configs: whole configs, as plain trees.
    """
    idle = set.intersection(*map(_idle_sections, configs))
    return [{name: section for name, section in config.items() if name not in idle} for config in configs]


def _idle_sections(config: Mapping[str, Any]) -> set[str]:
    """Sections that a run never reads: other distillers' own, and RAHO's under another builder.

    A class may read the sections of those that it is made from; of an unknown one nothing can be said.
    """
    name = config["DISTILLER"]["TYPE"]
    chosen = [name] if name != "ACD" else [name, config["ACD"]["BASELINE"]]
    if not all(name in DISTILLERS for name in chosen):
        return set()
    read = {getattr(kind, "section", "") for name in chosen for kind in DISTILLERS.get(name).__mro__}
    idle = {DISTILLERS.get(name).section for name in DISTILLERS} - read
    return idle if config["SOLVER"]["OPTIMIZER_BUILDER"] == "RAHO" else idle | {"RAHO"}
