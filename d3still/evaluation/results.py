"""What a ranking yields: measures of each query, their means, and the ranked lists on request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d3still.evaluation.labels import row_starts

_PERCENT = 100.0


@dataclass(frozen=True)
class RankedLists:
    """The best gallery images of every query, unmatched queries included.

    Junk and images that the same-camera rule removes are not in the lists. K = min(topk, gallery size).
    """

    indices: np.ndarray  # (Q, K) int64, index into the gallery as given; -1 where the list is shorter
    scores: np.ndarray  # (Q, K) float64: cosine similarity, or distance (smaller is nearer); NaN where shorter
    hits: np.ndarray  # (Q, K) bool: of the query's identity


@dataclass(frozen=True)
class RankingResult:
    """Measures of one ranking, as fractions.

    Per-query arrays have one entry a query in the order given. A query without a match has NaN as AP and
    INP and 0 as first hit, and is left out of every mean.
    """

    mAP: float
    mINP: float
    cmc: list[float]  # share of valid queries whose first hit is at rank 1, 2, …, max_rank or before
    ap: np.ndarray  # (Q,) float64: mean of (hits so far / rank) over the hits (rectangular AP)
    inp: np.ndarray  # (Q,) float64: number of hits / rank of the last one
    first_hit: np.ndarray  # (Q,) int64: rank of the first hit, from 1; 0 without a hit
    num_valid: int  # queries with at least one match
    num_unmatched: int  # queries without: their identity is junk, not in the gallery, or only from their camera
    topk: RankedLists | None = None

    def summary(self) -> dict[str, float]:
        """mAP, mINP, R1, R5 and R10 in percent; a rank beyond max_rank repeats the curve's last value."""
        ranks = {f"R{rank}": self.cmc[min(rank, len(self.cmc)) - 1] for rank in (1, 5, 10)}
        return {name: _PERCENT * value for name, value in {"mAP": self.mAP, "mINP": self.mINP, **ranks}.items()}

    @staticmethod
    def of(measures: np.ndarray, max_rank: int, topk: RankedLists | None) -> RankingResult:
        """The result of every query's `measure` (3, Q), NaN for those without a hit; one must have one."""
        ap, inp, first_hit = measures
        first = first_hit[first_hit > 0].astype(np.int64)
        found = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
        return RankingResult(
            mAP=float(np.nanmean(ap)),
            mINP=float(np.nanmean(inp)),
            cmc=(np.cumsum(found) / len(first)).tolist(),
            ap=ap,
            inp=inp,
            first_hit=np.nan_to_num(first_hit).astype(np.int64),
            num_valid=len(first),
            num_unmatched=len(first_hit) - len(first),
            topk=topk,
        )


def measure(rows: np.ndarray, misses_before: np.ndarray) -> np.ndarray:
    """AP, INP and first hit (3, n) of n queries, from how many misses stand before each of their hits.

    Args:
        rows: (T,) row of each hit, ascending from 0 without a gap.
        misses_before: (T,) misses that rank before that hit, in any order within a row.

    The k-th hit of a row has k − 1 hits and its misses before it, so that only the sorted numbers of misses
    matter: which of two equally good hits comes first does not.
    """
    misses_before = misses_before[np.lexsort((misses_before, rows))]
    start = row_starts(rows)
    hits = np.diff(np.append(start, len(rows)))
    nth = np.arange(1, len(rows) + 1) - np.repeat(start, hits)
    rank = nth + misses_before
    return np.stack([np.add.reduceat(nth / rank, start) / hits, hits / rank[start + hits - 1], rank[start]])
