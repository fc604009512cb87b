"""The published VeRi-776 results, to stand beside measured ones."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

FILE = "published_veri776.json"  # METHOD: "Published results on VeRi-776"
IBN = ("_ibn_a_", "_IBN_")  # the network's name in configs, and in the published table


def published_scores(pair: str, baseline: str) -> dict[str, dict[str, float]] | None:
    """Published AIR {"baseline": {mAP, R1}, "acd": {mAP, R1}} in percent, or None where none was published.

    Args:
        pair: as `pair_of` names it, ``VeRi776/ResNet101_256x256__ResNet18_128x128``.
        baseline: its registered name.
    """
    dataset, _, networks = pair.partition("/")
    found = _table().get(dataset, {}).get(networks.replace(*IBN), {}).get(baseline)
    return None if found is None else {"baseline": found["baseline"], "acd": found["ACD"]}


@functools.cache
def _table() -> dict[str, Any]:
    text = (files("d3still.reporting") / FILE).read_text(encoding="utf-8")
    return {dataset: pairs for dataset, pairs in json.loads(text).items() if isinstance(pairs, dict)}
