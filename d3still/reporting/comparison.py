"""The results object of a comparison: rows of variants against their baselines, with every number they need.

Tables, JSON, figures and the report all follow from it. Notes say what a reader should know before believing a
difference: runs that were not made alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from d3still.reporting.families import rows_of
from d3still.reporting.pairing import pairs_of_seeds
from d3still.reporting.rows import AGAINST, COLUMNS, Column, Difference, Row, shared_seeds
from d3still.reporting.statistics import MIN_IDENTITIES, Verdict, correct, paired_bootstrap
from d3still.runs.facts import ACD, BASELINE, differences
from d3still.runs.finished import Run
from d3still.runs.folder import FREE_TO_CHANGE

SEED = "SOLVER.SEED"
HOW_IT_RAN = [key for key in FREE_TO_CHANGE if not key.startswith("DISTILLER.")]  # settings that change no number
TESTING = ("TEST.TEST_METRIC", "TEST.EXCLUDE_SAME_CAMERA", "TEST.FLIP_FEATS")  # settings that change every score


@dataclass(eq=False)
class Comparison:
    """Everything that was compared.

    Attributes:
        rows: in the order of the tables, a baseline before its variants.
        notes: what a reader must know: runs left out, settings that differ, tests not made.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def by_pair(self) -> dict[str, list[Row]]:
        """The rows of each dataset-and-networks pair, one table each."""
        tables: dict[str, list[Row]] = {}
        for row in self.rows:
            tables.setdefault(row.pair, []).append(row)
        return tables

    def find(self, pair: str, baseline: str, variant: str) -> Row | None:
        """One row."""
        names = (pair, baseline, variant)
        return next((row for row in self.rows if (row.pair, row.baseline, row.variant) == names), None)

    def compared(self) -> list[tuple[Row, Row]]:
        """(baseline, + ACD) of every baseline that has both at a common seed."""
        found = ((self.find(row.pair, row.baseline, BASELINE), row) for row in self.rows if row.variant == ACD)
        return [(before, after) for before, after in found if before is not None and shared_seeds(before, after)]


def compare(runs: Iterable[Run], notes: Sequence[str] = ()) -> Comparison:
    """Compare finished runs of any stages; runs that belong together are found by their configs.

    Args:
        runs: of stages 0, 1 and 2; stage 0 gives the baselines' SIR.
        notes: to be kept with the result.
    """
    runs = list(runs)
    left_out = [f"left out: {problem}" for run in runs for problem in run.problems]
    comparison = Comparison(rows_of(runs), [*notes, *left_out])
    _add_differences(comparison)
    comparison.notes += [*_untested(comparison.rows), *_unfair(comparison)]
    return comparison


def _add_differences(comparison: Comparison) -> None:
    """Differences of every row over its baseline and its finetune control, corrected over the rows of a column."""
    for against in AGAINST:
        found: list[tuple[Row, Row]] = []
        for row in comparison.rows:
            reference = comparison.find(row.pair, row.baseline, against)
            if reference is not None and row.variant not in (BASELINE, against) and shared_seeds(row, reference):
                found.append((row, reference))
        for column in COLUMNS:
            verdicts = correct([_test(row, reference, column) for row, reference in found])
            for (row, reference), verdict in zip(found, verdicts, strict=True):
                row.differences.setdefault(against, {})[column] = _difference(row, reference, column, verdict)


def _difference(row: Row, reference: Row, column: Column, verdict: Verdict | None) -> Difference:
    seeds = shared_seeds(row, reference)
    gains = [row.results[seed].score(column) - reference.results[seed].score(column) for seed in seeds]
    return Difference(float(np.mean(gains)), len(seeds), verdict)


def _test(row: Row, reference: Row, column: Column) -> Verdict | None:
    parts = pairs_of_seeds(row, reference, column)
    if not parts:
        return None
    return paired_bootstrap(np.concatenate([p.values for p in parts]), np.concatenate([p.identities for p in parts]))


def _untested(rows: Sequence[Row]) -> Iterator[str]:
    """Rows that could not be tested, where others could; that none could is a footnote of its own."""
    made = [(row, against, found[COLUMNS[0]]) for row in rows for against, found in row.differences.items()]
    if any(difference.verdict for _, _, difference in made):
        for row, against, difference in made:
            if difference.verdict is None:
                yield (
                    f"{_name(row)}: not tested against {against} (no per-query results of both, "
                    f"or fewer than {MIN_IDENTITIES} test identities)"
                )


def _unfair(comparison: Comparison) -> Iterator[str]:
    """A line for each thing in which compared runs differ but should not."""
    for row in comparison.rows:
        yield from _between_seeds(row)
        reference = comparison.find(row.pair, row.baseline, BASELINE)
        if reference is not None and reference is not row:
            yield from _against(row, reference)


def _between_seeds(row: Row) -> Iterator[str]:
    first, *others = row.seeds
    for seed in others:
        found = differences(row.results[first].run.config, row.results[seed].run.config)
        keys = [key for key, _, _ in found if key != SEED and key not in HOW_IT_RAN]
        if keys:
            yield f"{_name(row)}: seeds {first} and {seed} also differ in {', '.join(keys)}"


def _against(row: Row, reference: Row) -> Iterator[str]:
    for seed in row.seeds:
        if seed not in reference.results:
            yield f"{_name(row)}: seed {seed} has no finished baseline"
            continue
        one, other = row.results[seed].run, reference.results[seed].run
        precisions = one.metrics.get("precision"), other.metrics.get("precision")
        if precisions[0] != precisions[1]:
            yield f"{_name(row)}, seed {seed}: trained in {precisions[0]}, the baseline in {precisions[1]}"
        for key, value, before in differences(one.config, other.config):
            if key in TESTING:
                yield f"{_name(row)}, seed {seed}: tested with {key} {value}, the baseline with {before}"


def _name(row: Row) -> str:
    return f"{row.pair}, {row.baseline}, {row.variant}"
