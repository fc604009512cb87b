"""Which queries to look at."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from d3still.data import Sample
from d3still.errors import UserError
from d3still.evaluation.lists import Ranking, most_changed, worst
from d3still.runs.finished import Run
from d3still.runs.inputs import relative_names


@dataclass(frozen=True)
class Choice:
    """Places of the chosen queries, what they are, and how much AP (a fraction) each query of all gained, if asked."""

    places: list[int]
    what: str
    gains: np.ndarray | None = None


def choose(
    ranking: Ranking,
    protocol: str,
    other: Callable[[], Run],
    names: Sequence[str] | None = None,
    improved: int | None = None,
    harmed: int | None = None,
    lowest: int = 5,
) -> Choice:
    """Queries by name, or the most improved, or the most harmed, or else those of lowest AP.

    Args:
        ranking: of all queries.
        protocol: AIR or SIR.
        other: the run that gains are over.
        names, improved, harmed: what to choose, if not by lowest AP.
        lowest: how many of lowest AP.

    Raises:
        UserError: when no query is such, or is named so.
    """
    if names:
        return Choice(by_name(names, ranking.query), "chosen")
    if improved is None and harmed is None:
        return Choice(worst(ranking.ap, lowest), "worst")
    what, count = ("most improved", improved) if improved is not None else ("most harmed", harmed)
    gains = gains_over(other(), ranking.query, ranking.ap, protocol)
    places = most_changed(gains, count)[what == "most harmed"]
    if not places:
        raise UserError(f"no query is {what.rpartition(' ')[2]}, so there is nothing to draw")
    return Choice(places, what, gains)


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
        why = "".join(f"; {problem}" for problem in other.problems)
        raise UserError(f"{other.folder} has no per-query {protocol} results to compare with{why}")
    before = dict(zip(relative_names(arrays["query_paths"]), arrays[f"{protocol}_ap"].tolist(), strict=True))
    names = relative_names([sample.path for sample in query])
    return np.nan_to_num(ap - np.array([before.get(name, np.nan) for name in names]))
