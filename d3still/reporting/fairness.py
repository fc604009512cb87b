"""What a reader should know before believing a difference: runs that were not made alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from d3still.reporting.rows import Row
from d3still.runs.facts import BASELINE, differences
from d3still.runs.folder import FREE_TO_CHANGE

SEED = "SOLVER.SEED"
HOW_IT_RAN = [key for key in FREE_TO_CHANGE if not key.startswith("DISTILLER.")]  # settings that change no number
TESTING = ("TEST.TEST_METRIC", "TEST.EXCLUDE_SAME_CAMERA", "TEST.FLIP_FEATS")  # settings that change every score


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
