"""The report page: one file, no server, nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence

from d3still.pages import render
from d3still.reporting.album import Album
from d3still.reporting.comparison import Comparison
from d3still.reporting.details import ListSource, detail
from d3still.reporting.rows import Difference
from d3still.reporting.statistics import signed
from d3still.reporting.tables import footnotes, pair_title, tables_of
from d3still.runs.facts import BASELINE

SHOWN_QUERIES = 3  # most improved, and as many most harmed
JUDGED = {("AIR", "mAP"): "Asymmetric mAP", ("AIR", "R1"): "Asymmetric R1", ("SIR", "mAP"): "Symmetric mAP"}


def report_html(comparison: Comparison, lists_of: ListSource | None = None, shown_queries: int = SHOWN_QUERIES) -> str:
    """The whole page as text.

    Args:
        comparison: what to report.
        lists_of: where ranked lists come from; None leaves them out.
        shown_queries: how many of the most improved and of the most harmed queries to show for each baseline.
    """
    album = Album()
    return render(
        "d3still.reporting",
        "report.html",
        title=_title(list(comparison.by_pair)),
        verdict=verdict(comparison),
        tables=tables_of(comparison),
        notes=footnotes(comparison),
        details=[detail(before, after, album, lists_of, shown_queries) for before, after in comparison.compared()],
    )


def verdict(comparison: Comparison) -> list[str]:
    """Does + ACD help, by how much, is it real, and what did it do to symmetric retrieval: a sentence each."""
    rows = [after for _, after in comparison.compared()]
    if not rows:
        return ["No baseline has a finished + ACD run of the same seed yet, so there is nothing to compare."]
    return [
        f"{what} {_changes([row.differences[BASELINE][column] for row in rows])}" for column, what in JUDGED.items()
    ]


def _changes(found: Sequence[Difference]) -> str:
    """``rises in 2 of 3 rows (1 significantly) and falls in 1 of 3 rows (none significantly) with + ACD: …``."""
    parts = []
    for word, sign in (("rises", 1), ("falls", -1)):
        moved = [difference for difference in found if sign * difference.value > 0]
        if moved:
            sure = sum(difference.significant for difference in moved)
            parts.append(f"{word} in {len(moved)} of {len(found)} rows ({sure or 'none'} significantly)")
    low, high = min(d.value for d in found), max(d.value for d in found)
    span = signed(low) if low == high else f"{signed(low)} to {signed(high)}"
    return f"{' and '.join(parts) or 'stays the same'} with + ACD: {span} percentage points."


def _title(pairs: Sequence[str]) -> str:
    if len(pairs) == 1:
        return f"+ ACD on {pair_title(pairs[0])}"
    datasets = dict.fromkeys(pair.partition("/")[0] for pair in pairs)
    return f"+ ACD on {', '.join(datasets)}: {len(pairs)} pairs of networks"
