"""The ranking protocol a second time, item by item in plain Python: slow, and plainly right."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Naive:
    ap: list[float] = field(default_factory=list)  # NaN for a query without a hit
    inp: list[float] = field(default_factory=list)
    first_hit: list[int] = field(default_factory=list)  # 0 for a query without a hit
    ranked: list[list[int]] = field(default_factory=list)  # gallery indices, best first


def naive_ranking(scores, query_ids, gallery_ids, query_cams, gallery_cams, exclude_same_camera=True):
    """``scores[i][j]``: higher is nearer."""
    result = Naive()
    for row, identity, camera in zip(scores, query_ids, query_cams, strict=True):
        candidates = [
            (-score, gallery_id == identity, index)  # at equal scores False, a miss, sorts before True
            for index, (score, gallery_id, gallery_cam) in enumerate(zip(row, gallery_ids, gallery_cams, strict=True))
            if gallery_id != -1 and not (exclude_same_camera and gallery_id == identity and gallery_cam == camera)
        ]
        candidates.sort()
        ranks = [rank for rank, (_, is_hit, _) in enumerate(candidates, 1) if is_hit]
        result.ranked.append([index for _, _, index in candidates])
        result.ap.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks) if ranks else math.nan)
        result.inp.append(len(ranks) / ranks[-1] if ranks else math.nan)
        result.first_hit.append(ranks[0] if ranks else 0)
    return result
