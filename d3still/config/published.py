"""placeholder"""

from __future__ import annotations

from d3still.config.reader import Layer, Setting


def translate(layer: Layer) -> dict[str, Setting]:
    """The layer's settings under the keys of this schema."""
    return layer.settings


def translate_overrides(settings: dict[str, Setting]) -> dict[str, Setting]:
    """Command-line settings under the keys of this schema."""
    return settings
