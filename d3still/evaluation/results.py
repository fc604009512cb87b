"""What a ranking yields: measures of each query, their means, and the ranked lists on request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d3still.evaluation.labels import row_starts

_PERCENT = 100.0
_COUNT_BITS = 40  # room for a gallery index below a row number in one int64 sort key


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


@dataclass(frozen=True)
class Measures:
    """AP, INP and first hit of some queries (n,)."""

    ap: np.ndarray
    inp: np.ndarray
    first_hit: np.ndarray

    @staticmethod
    def unset(num_queries: int) -> Measures:
        """Measures of queries that have no match."""
        return Measures(
            np.full(num_queries, np.nan), np.full(num_queries, np.nan), np.zeros(num_queries, dtype=np.int64)
        )

    def put(self, queries: np.ndarray | slice, measures: Measures) -> None:
        """Enter the measures of ``queries`` in place."""
        self.ap[queries] = measures.ap
        self.inp[queries] = measures.inp
        self.first_hit[queries] = measures.first_hit

    def result(self, max_rank: int, topk: RankedLists | None) -> RankingResult:
        """Means over the queries that have a hit; there must be one."""
        first = self.first_hit[self.first_hit > 0]
        found = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
        return RankingResult(
            mAP=float(np.nanmean(self.ap)),
            mINP=float(np.nanmean(self.inp)),
            cmc=(np.cumsum(found) / len(first)).tolist(),
            ap=self.ap,
            inp=self.inp,
            first_hit=self.first_hit,
            num_valid=len(first),
            num_unmatched=len(self.first_hit) - len(first),
            topk=topk,
        )


def measure(rows: np.ndarray, misses_before: np.ndarray) -> Measures:
    """Measures from how many misses stand before each hit.

    Args:
        rows: (T,) row of each hit, ascending from 0 without a gap.
        misses_before: (T,) misses that rank before that hit, in any order within a row.

    The k-th hit of a row has k − 1 hits and its misses before it, so that only the sorted numbers of misses
    matter: which of two equally good hits comes first does not.
    """
    key = np.sort((rows << _COUNT_BITS) + misses_before)
    start = row_starts(rows)
    hits = np.diff(np.append(start, len(rows)))
    nth = np.arange(1, len(rows) + 1) - np.repeat(start, hits)
    rank = nth + (key & ((1 << _COUNT_BITS) - 1))
    last = start + hits - 1
    return Measures(np.add.reduceat(nth / rank, start) / hits, hits / rank[last], rank[start])
