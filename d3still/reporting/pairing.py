"""Two runs over the same queries, query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d3still.reporting.rows import Column, Row, shared_seeds
from d3still.reporting.statistics import signed
from d3still.runs.finished import Run
from d3still.runs.inputs import relative_names

PERCENT = 100.0


@dataclass(frozen=True)
class Pairs:
    """Values of the queries that two runs share, in the order of the first run.

    Attributes:
        paths: (n,) the queries' paths, as the first run has them.
        identities: (n,) their identities.
        names: (n,) what the dataset calls these.
        after, before: (n,) a measure of each, in percent, of the first and the second run.
    """

    paths: np.ndarray
    identities: np.ndarray
    names: np.ndarray
    after: np.ndarray
    before: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """(n,) gains in percentage points."""
        return self.after - self.before

    def change(self, i: int) -> str:
        """The AP of the query at place ``i``: ``50.0 % → 55.0 % (+5.00)``."""
        return f"{self.before[i]:.1f} % → {self.after[i]:.1f} % ({signed(float(self.values[i]))})"


def paired_differences(after: Run, before: Run, protocol: str, measure: str) -> Pairs | None:
    """AP (for ``mAP``) or whether the first rank is a hit (``R1``) of the queries that both runs ranked.

    Queries are told by the part of their path below the folder that all of a run's queries share, so that the
    data may lie elsewhere for either run. A query without a match counts for neither.

    Returns:
        The pairs, or None where a run has no per-query results of the protocol or they share no query.
    """
    first = after.per_query
    gained, had = (_scores(run.per_query, protocol, measure) for run in (after, before))
    if gained is None or had is None:
        return None
    one, other = _shared(first["query_paths"], before.per_query["query_paths"])
    kept = np.isfinite(gained[one]) & np.isfinite(had[other])
    one, other = one[kept], other[kept]
    if not len(one):
        return None
    names = first.get("query_names", first["query_ids"].astype(str))  # older runs kept the numbers alone
    return Pairs(first["query_paths"][one], first["query_ids"][one], names[one], gained[one], had[other])


def pairs_of_seeds(after: Row, before: Row, column: Column) -> list[Pairs]:
    """`paired_differences` of two rows' runs at each seed that both have, where there are any."""
    protocol, measure = column
    seeds = shared_seeds(after, before)
    runs = ([row.results[seed].source(protocol) for row in (after, before)] for seed in seeds)
    found = (paired_differences(*sides, protocol, measure) for sides in runs)
    return [pairs for pairs in found if pairs is not None]


def mean_pairs(parts: list[Pairs]) -> Pairs:
    """The queries that all parts share, with the mean of each one's values; one part a seed."""
    first = parts[0]
    rows = _shared(*(part.paths for part in parts))
    after = np.mean([part.after[row] for part, row in zip(parts, rows, strict=True)], axis=0)
    before = np.mean([part.before[row] for part, row in zip(parts, rows, strict=True)], axis=0)
    return Pairs(first.paths[rows[0]], first.identities[rows[0]], first.names[rows[0]], after, before)


def _shared(*lists: Sequence[str]) -> list[np.ndarray]:
    """Places of the queries that all lists share, in the order of the first list."""
    found = [{name: i for i, name in enumerate(relative_names(paths))} for paths in lists]
    names = [name for name in found[0] if all(name in other for other in found)]
    return [np.array([place[name] for name in names], dtype=int) for place in found]


def _scores(arrays: Mapping[str, np.ndarray], protocol: str, measure: str) -> np.ndarray | None:
    """(Q,) in percent, NaN for a query without a match."""
    if "query_paths" not in arrays or f"{protocol}_ap" not in arrays:
        return None
    if measure == "mAP":
        return PERCENT * arrays[f"{protocol}_ap"]
    first_hit = arrays[f"{protocol}_first_hit"]
    return np.where(first_hit > 0, PERCENT * (first_hit == 1), np.nan)
