"""Which queries to look at."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from d3still.data import Sample
from d3still.errors import UserError
from d3still.reporting.pairing import relative_names
from d3still.reporting.runs import Run


def by_name(names: Sequence[str], query: Sequence[Sample]) -> list[int]:
    """Places of queries that are named by their path, or by as much of its end as tells them.

    Raises:
        UserError: for a name that fits no query, with the nearest that does, or several.
    """
    paths = [sample.path.replace("\\", "/") for sample in query]
    places = []
    for name in names:
        wanted = name.replace("\\", "/")
        found = [i for i, path in enumerate(paths) if path == wanted or path.endswith(f"/{wanted}")]
        if len(found) > 1:
            raise UserError(
                f"--queries {name} fits {len(found)} queries, {paths[found[0]]} and others; give more of the path"
            )
        if not found:
            files = [path.rpartition("/")[2] for path in paths]
            near = difflib.get_close_matches(wanted.rpartition("/")[2], files, n=1, cutoff=0.0)
            raise UserError(f"--queries {name} is no query; the nearest is {near[0]}")
        places += found
    return places


def gains_over(other: Run, query: Sequence[Sample], ap: np.ndarray, protocol: str) -> np.ndarray:
    """(Q,) how much higher each query's AP (a fraction) is than in another run; 0 where either has none.

    Raises:
        UserError: when the other run has no per-query results of the protocol.
    """
    arrays = other.per_query
    if f"{protocol}_ap" not in arrays:
        raise UserError(f"{other.folder} has no per-query {protocol} results to compare with")
    before = dict(zip(relative_names(arrays["query_paths"]), arrays[f"{protocol}_ap"].tolist(), strict=True))
    names = relative_names([sample.path for sample in query])
    return np.nan_to_num(ap - np.array([before.get(name, np.nan) for name in names]))
