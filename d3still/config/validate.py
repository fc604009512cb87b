"""placeholder"""

from __future__ import annotations

from d3still.config.node import Config


def validate(cfg: Config) -> None:
    """Refuse values that cannot work together."""
