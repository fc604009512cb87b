"""One line of a comparison: a baseline or a variant, with its results over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from d3still.reporting.statistics import Verdict, mean_and_deviation
from d3still.runs.facts import BASELINE, FINETUNE
from d3still.runs.finished import MEASURES, Run

PROTOCOLS = ("AIR", "SIR")
COLUMNS = (("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP"), ("SIR", "R1"))  # what the published tables show
EVERY_COLUMN = tuple((protocol, measure) for protocol in PROTOCOLS for measure in MEASURES)
Column = tuple[str, str]  # (protocol, measure)
AGAINST = (BASELINE, FINETUNE)  # what a row's differences are taken over


@dataclass(frozen=True, eq=False)
class Result:
    """One experiment at one seed.

    Attributes:
        run: the run.
        symmetric: the run whose SIR counts: of a baseline its stage-0 gallery's, since stage 1 freezes that.
    """

    run: Run
    symmetric: Run

    def source(self, protocol: str) -> Run:
        """The run that a protocol's numbers come from."""
        return self.run if protocol == "AIR" else self.symmetric

    def score(self, column: Column) -> float:
        """A measure in percent."""
        protocol, measure = column
        return float(self.source(protocol).metrics[protocol][measure])


@dataclass(frozen=True)
class Difference:
    """A row's mean difference over another row, over the seeds that both have, in percentage points.

    ``verdict`` is None where it could not be tested: no per-query results, or too few identities.
    """

    value: float
    seeds: int
    verdict: Verdict | None = None

    @property
    def significant(self) -> bool:
        """Whether the test says so."""
        return self.verdict is not None and self.verdict.significant


@dataclass(eq=False)
class Row:
    """One line of a table: a baseline, or a variant on top of it.

    Attributes:
        pair, baseline, variant: what the line is; ``variant`` is one of `VARIANTS` or a config's own name.
        results: by seed.
        differences: over the baseline and over the finetune control, by column; empty where there is none.
        published: mAP and R1 (AIR, percent) of the paper; None where it has none.
    """

    pair: str
    baseline: str
    variant: str
    results: Mapping[int, Result]
    differences: dict[str, dict[Column, Difference]] = field(default_factory=dict)
    published: Mapping[str, float] | None = None

    @property
    def seeds(self) -> list[int]:
        """Seeds that are finished, in order."""
        return sorted(self.results)

    def scores(self, column: Column) -> list[float]:
        """A measure of each seed, in percent."""
        return [self.results[seed].score(column) for seed in self.seeds]

    def summary(self, column: Column) -> tuple[float, float | None]:
        """Mean and sample standard deviation over seeds, in percent."""
        return mean_and_deviation(self.scores(column))


def shared_seeds(row: Row, other: Row) -> list[int]:
    """Seeds that both have, in order."""
    return sorted(set(row.results) & set(other.results))
