"""The results object of a comparison: rows of variants against their baselines, with every number they need.

Tables, JSON, figures and the report all follow from it. Notes say what a reader should know before believing a
difference: runs that were not made alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from d3still.reporting.families import Family, group
from d3still.reporting.pairing import paired_differences
from d3still.reporting.rows import AGAINST, COLUMNS, Column, Difference, Result, Row
from d3still.reporting.statistics import MIN_IDENTITIES, Verdict, correct, paired_bootstrap
from d3still.runs.facts import ACD, BASELINE, VARIANTS, differences
from d3still.runs.finished import Run
from d3still.runs.folder import FREE_TO_CHANGE

SEED = "SOLVER.SEED"
HOW_IT_RAN = [key for key in FREE_TO_CHANGE if not key.startswith("DISTILLER.")]  # settings that change no number
TESTING = ("TEST.TEST_METRIC", "TEST.EXCLUDE_SAME_CAMERA", "TEST.FLIP_FEATS")  # settings that change every score
PUBLISHED = "published_veri776.json"  # METHOD: "Published results on VeRi-776"
IBN = ("_ibn_a_", "_IBN_")  # the network's name in configs, and in the published table


@dataclass(eq=False)
class Comparison:
    """Everything that was compared.

    Attributes:
        rows: in the order of the tables, a baseline before its variants.
        notes: what a reader must know: runs left out, settings that differ, tests not made.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def pairs(self) -> list[str]:
        """The dataset-and-networks pairs, one table each."""
        return list(dict.fromkeys(row.pair for row in self.rows))

    def of_pair(self, pair: str) -> list[Row]:
        """The rows of one table."""
        return [row for row in self.rows if row.pair == pair]

    def find(self, pair: str, baseline: str, variant: str) -> Row | None:
        """One row."""
        names = (pair, baseline, variant)
        return next((row for row in self.rows if (row.pair, row.baseline, row.variant) == names), None)

    def compared(self) -> list[tuple[Row, Row]]:
        """(baseline, + ACD) of every baseline that has both."""
        found = ((self.find(row.pair, row.baseline, BASELINE), row) for row in self.rows if row.variant == ACD)
        return [(before, after) for before, after in found if before is not None]


def compare(runs: Iterable[Run], notes: Sequence[str] = ()) -> Comparison:
    """Compare finished runs of any stages; runs that belong together are found by their configs.

    Args:
        runs: of stages 0, 1 and 2; stage 0 gives the baselines' SIR.
        notes: to be kept with the result.
    """
    runs = list(runs)
    comparison = Comparison([], [*notes, *(f"left out: {problem}" for run in runs for problem in run.problems)])
    for family in group(runs):
        comparison.rows += _rows(family)
    _add_differences(comparison)
    comparison.notes += fairness_notes(comparison.rows)
    return comparison


def _rows(family: Family) -> list[Row]:
    published = published_scores(family.pair, family.baseline_name) or {}
    rows = []
    for variant, runs in family.variants.items():
        results = {seed: Result(run, family.galleries.get(seed, run)) for seed, run in runs.items()}
        if variant != BASELINE:
            results = {seed: Result(run, run) for seed, run in runs.items()}
        rows.append(Row(family.pair, family.label, variant, results, published=published.get(variant)))
    places = {variant: place for place, variant in enumerate(VARIANTS)}
    return sorted(rows, key=lambda row: (places.get(row.variant.partition(" (")[0], len(places)), row.variant))


def _add_differences(comparison: Comparison) -> None:
    """Differences of every row over its baseline and its finetune control, corrected over the rows of a column."""
    for against in AGAINST:
        found: list[tuple[Row, Row]] = []
        for row in comparison.rows:
            reference = comparison.find(row.pair, row.baseline, against)
            if reference is not None and row.variant not in (BASELINE, against) and _common(row, reference):
                found.append((row, reference))
        for column in COLUMNS:
            verdicts = correct([_test(row, reference, column) for row, reference in found])
            for (row, reference), verdict in zip(found, verdicts, strict=True):
                row.differences.setdefault(against, {})[column] = _difference(row, reference, column, verdict)
    comparison.notes += _untested(comparison)


def _difference(row: Row, reference: Row, column: Column, verdict: Verdict | None) -> Difference:
    seeds = _common(row, reference)
    gains = [row.results[seed].score(column) - reference.results[seed].score(column) for seed in seeds]
    return Difference(float(np.mean(gains)), len(seeds), verdict)


def _untested(comparison: Comparison) -> list[str]:
    """Rows that could not be tested, where others could; that none could is a footnote of its own."""
    column = COLUMNS[0]
    made = [(row, against, found[column]) for row in comparison.rows for against, found in row.differences.items()]
    if not any(difference.verdict for _, _, difference in made):
        return []
    return [
        f"{_name(row)}: not tested against {against} (no per-query results of both, "
        f"or fewer than {MIN_IDENTITIES} test identities)"
        for row, against, difference in made
        if difference.verdict is None
    ]


def _common(row: Row, reference: Row) -> list[int]:
    return sorted(set(row.results) & set(reference.results))


def _test(row: Row, reference: Row, column: Column) -> Verdict | None:
    protocol, _ = column
    parts = [
        paired_differences(row.results[seed].source(protocol), reference.results[seed].source(protocol), *column)
        for seed in _common(row, reference)
    ]
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    return paired_bootstrap(np.concatenate([p.values for p in parts]), np.concatenate([p.identities for p in parts]))


def fairness_notes(rows: Sequence[Row]) -> list[str]:
    """A line for each thing in which compared runs differ but should not."""
    baselines = {(row.pair, row.baseline): row for row in rows if row.variant == BASELINE}
    notes: list[str] = []
    for row in rows:
        notes += _between_seeds(row)
        reference = baselines.get((row.pair, row.baseline))
        if reference is not None and reference is not row:
            notes += _against(row, reference)
    return notes


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
    text = (files("d3still.reporting") / PUBLISHED).read_text(encoding="utf-8")
    return {dataset: pairs for dataset, pairs in json.loads(text).items() if isinstance(pairs, dict)}
