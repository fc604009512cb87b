"""Benchmarks end with their goals, and with the exit status that says whether all are met."""

import math

from benchmarks.goals import Goal, judge


def test_goals_are_met_or_missed(capsys):
    met = [Goal("time ratio", 1.3, 1.3), Goal("times as fast", 5.0, 5, at_least=True)]
    assert judge(met) == 0
    assert judge([*met, Goal("peak, MB", 401, 400)]) == 1
    assert judge([Goal("time ratio", math.nan, 1.3)]) == 1, "what could not be measured meets no goal"
    assert "  MISSED: peak, MB 401 (goal ≤ 400)" in capsys.readouterr().out
