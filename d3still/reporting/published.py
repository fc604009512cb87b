"""The published table of VeRi-776 (METHOD: "Published results on VeRi-776")."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

PUBLISHED = "published_veri776.json"
IBN = ("_ibn_a_", "_IBN_")  # the network's name in configs, and in the published table


def published_scores(pair: str, baseline: str) -> dict[str, dict[str, float]]:
    """Published AIR {"baseline": {mAP, R1}, "acd": {mAP, R1}} in percent; empty where none was published.

    Args:
        pair: as `pair_of` names it, ``VeRi776/ResNet101_256x256__ResNet18_128x128``.
        baseline: its registered name.
    """
    dataset, _, networks = pair.partition("/")
    found = _table().get(dataset, {}).get(networks.replace(*IBN), {}).get(baseline, {})
    return {variant.lower(): scores for variant, scores in found.items()}


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads((files("d3still.reporting") / PUBLISHED).read_text(encoding="utf-8"))
