"""The table of distillers. ``DISTILLERS.register`` is all that a new baseline needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d3still.registry import ConfiguredRegistry

DISTILLERS = ConfiguredRegistry("distiller", "DISTILLER.TYPE")


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
