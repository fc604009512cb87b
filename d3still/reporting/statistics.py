"""Is a difference real? Paired bootstrap over test identities, corrected for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 10_000  # the smallest p is then 2 / 10,001, small enough to survive Holm over dozens of rows
LEVEL = 0.05  # a Holm-corrected p below this counts as significant
CONFIDENCE = 1 - LEVEL
# With n identities that all changed one way a sign test gives 2^(1 − n): below ten, resampling so few
# identities promises more certainty than there is, so nothing is tested.
MIN_IDENTITIES = 10
DRAWS_AT_ONCE = 2**22  # bounds the memory: resampled identities held at a time
ROUNDING = 9  # decimals: the same network evaluated twice differs in the last bits, which is no difference
SEED = 0  # of the resampling, so that a table repeats


@dataclass(frozen=True)
class Verdict:
    """The outcome for one mean difference, in the unit of the values.

    Attributes:
        low, high: 95 % percentile interval of the mean difference.
        p: two-sided, against a mean difference of 0.
        identities, values: how many there were.
        p_holm: p corrected over the rows of a table; None until `holm` has seen all rows.
    """

    low: float
    high: float
    p: float
    identities: int
    values: int
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 5 %."""
        return self.p_holm is not None and self.p_holm < LEVEL


def paired_bootstrap(differences: np.ndarray, identities: np.ndarray, resamples: int = RESAMPLES) -> Verdict | None:
    """Verdict whether the mean of paired differences is 0, with the identities as independent units.

    Queries of one identity are alike, and so are the seeds of one query, so neither is independent:
    an identity is drawn, with replacement, together with all its queries of all seeds ("cluster
    bootstrap"; Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 15). The mean is over all
    differences, so that an identity counts by its queries. The p-value inverts the percentile interval:
    twice the share of resampled means on the other side of 0, counting the observed sample itself.

    Args:
        differences: (n,) finite values, one a query and seed.
        identities: (n,) the identity of each.
        resamples: how often to draw.

    Returns:
        The test, or None where there are fewer than `MIN_IDENTITIES` identities.
    """
    names, member = np.unique(identities, return_inverse=True)
    differences = np.round(differences, ROUNDING)
    if len(names) < MIN_IDENTITIES:
        return None
    sums = np.bincount(member, weights=differences)
    counts = np.bincount(member).astype(float)
    if not sums.any():  # no identity changed on average: every resampled mean is 0
        return Verdict(0.0, 0.0, 1.0, len(names), len(differences))
    drawn = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, DRAWS_AT_ONCE // len(names)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    means = drawn.bootstrap_distribution
    other_side = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (1 + int(other_side)) / (1 + resamples))
    low, high = drawn.confidence_interval
    return Verdict(float(low), float(high), p, len(names), len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: with all m values sorted, the k-th is multiplied by m − k + 1, and none
    may be below the one before it (Holm 1979). In the order given, at most 1."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def correct(tests: Sequence[Verdict | None]) -> list[Verdict | None]:
    """The same tests with Holm-corrected p-values; those that could not be made (None) do not count."""
    corrected = iter(holm([test.p for test in tests if test is not None]))
    return [None if test is None else replace(test, p_holm=next(corrected)) for test in tests]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1 in the denominator); None for a single value."""
    return float(np.mean(values)), (float(np.std(values, ddof=1)) if len(values) > 1 else None)


def signed(value: float) -> str:
    """A difference with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", "−")
