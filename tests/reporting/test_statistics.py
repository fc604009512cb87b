"""The significance test: known properties, a second implementation, and Holm worked by hand."""

import numpy as np
import pytest

from d3still.reporting.statistics import (
    MIN_IDENTITIES,
    RESAMPLES,
    Verdict,
    correct,
    holm,
    mean_and_deviation,
    paired_bootstrap,
)

IDENTITIES = np.repeat(np.arange(40), 3)


def gains(shift, rng=None, spread=5.0):
    return (rng or np.random.default_rng(0)).normal(shift, spread, len(IDENTITIES))


def test_identical_runs_do_not_differ():
    verdict = paired_bootstrap(np.zeros(120), IDENTITIES)
    assert (verdict.p, verdict.low, verdict.high) == (1.0, 0.0, 0.0)
    assert (verdict.identities, verdict.values) == (40, 120)


def test_rounding_of_the_last_bits_is_no_difference():
    assert paired_bootstrap(np.full(120, 1e-13), IDENTITIES).p == 1.0


def test_a_constant_shift_is_certain():
    verdict = paired_bootstrap(np.full(120, 0.5), IDENTITIES)
    assert verdict.p == pytest.approx(2 / (RESAMPLES + 1)), "no resample lies on the other side"
    assert verdict.low == pytest.approx(0.5) and verdict.high == pytest.approx(0.5)


def test_before_and_after_of_an_identity_are_drawn_together():
    """Ten points on each query, whatever its AP, in identities of 1 to 40 queries: ten in every resample."""
    identities = np.repeat(np.arange(40), np.arange(1, 41))
    before = np.random.default_rng(2).uniform(0, 90, len(identities))
    verdict = paired_bootstrap((before + 10) - before, identities)
    assert (verdict.low, verdict.high) == pytest.approx((10.0, 10.0)) and verdict.p < 0.001


def test_turning_the_comparison_round_mirrors_it():
    one, other = paired_bootstrap(gains(0.7), IDENTITIES), paired_bootstrap(-gains(0.7), IDENTITIES)
    assert one.p == other.p
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), rel=1e-6)


def test_it_repeats():
    assert paired_bootstrap(gains(0.7), IDENTITIES) == paired_bootstrap(gains(0.7), IDENTITIES)


def test_a_second_implementation_agrees():
    """Plain loops over identities with their queries, with other random numbers."""
    rng = np.random.default_rng(7)
    identities = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    values = rng.normal(1.0, 4.0, len(identities))
    members = [values[identities == i] for i in range(30)]
    means = np.array([np.concatenate([members[i] for i in rng.integers(30, size=30)]).mean() for _ in range(4000)])
    verdict = paired_bootstrap(values, identities)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.1)
    assert verdict.p == pytest.approx(2 * min((means <= 0).mean(), (means >= 0).mean()), abs=0.02)


def test_p_and_interval_say_the_same():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.5, 1.0, 1.5, 2.0):
        verdict = paired_bootstrap(gains(shift, rng), IDENTITIES)
        if abs(verdict.p - 0.05) > 0.005:
            assert (verdict.p < 0.05) == (verdict.low > 0 or verdict.high < 0)


def test_seeds_do_not_count_as_further_identities():
    """Three seeds that agree are no more identities than one seed."""
    values = gains(0.7)
    alone = paired_bootstrap(values, IDENTITIES)
    pooled = paired_bootstrap(np.tile(values, 3), np.tile(IDENTITIES, 3))
    assert (pooled.p, pooled.low, pooled.high) == pytest.approx((alone.p, alone.low, alone.high))


def test_queries_of_one_identity_are_not_independent():
    """The same numbers, once as 20 identities of 20 alike queries, once as 400 identities."""
    values = np.repeat(np.random.default_rng(1).normal(0.2, 1.0, 20), 20)
    assert paired_bootstrap(values, np.repeat(np.arange(20), 20)).p > 10 * paired_bootstrap(values, np.arange(400)).p


def test_an_identity_counts_by_its_queries():
    """39 identities with one query that lost a point, one with 41 that gained one: the mean gain is 0.025."""
    identities = np.concatenate([np.arange(39), np.full(41, 39)])
    values = np.concatenate([np.full(39, -1.0), np.full(41, 1.0)])
    assert paired_bootstrap(values, identities).p > 0.3, "all rests on one identity"


def test_false_alarms_are_as_rare_as_promised():
    """Without a true difference about 5 % of tests fall below 0.05 (200 tests: 5 % ± 3 standard errors)."""
    rng = np.random.default_rng(5)
    found = [paired_bootstrap(gains(0.0, rng), IDENTITIES, resamples=500).p < 0.05 for _ in range(200)]
    assert 0.01 <= np.mean(found) <= 0.10


def test_too_few_identities_are_not_tested():
    few = MIN_IDENTITIES - 1
    assert paired_bootstrap(np.ones(few), np.arange(few)) is None
    assert paired_bootstrap(np.ones(few + 1), np.arange(few + 1)) is not None


def test_holm_by_hand():
    # sorted 0.005·4 = 0.02, 0.01·3 = 0.03, 0.03·2 = 0.06, 0.04·1 = 0.04 → not below the one before: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0], "never above 1"
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_correction_leaves_out_what_was_not_tested():
    tested = [Verdict(0, 1, 0.02, 10, 10), None, Verdict(0, 1, 0.03, 10, 10)]
    found = correct(tested)
    assert found[1] is None
    assert [verdict.p_holm for verdict in found if verdict] == pytest.approx([0.04, 0.04])
    assert all(verdict.significant for verdict in found if verdict)
    assert not tested[0].significant, "a raw p is never called significant"


def test_mean_and_sample_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)  # (1 + 0 + 1) / 2 = 1
    assert mean_and_deviation([5.0]) == (5.0, None)
