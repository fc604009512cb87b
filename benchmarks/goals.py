"""How every benchmark ends: its goals, each met or missed, and the exit status that says so."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """A number that was measured, and what it must not pass.

    Attributes:
        name: what was measured, with its unit.
        value: the measurement; NaN meets no goal.
        limit: the largest value that is good, or the smallest one with ``at_least``.
    """

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the measurement is good."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{'met' if self.met else 'MISSED'}: {self.name} {self.value:.3g} (goal {sign} {self.limit:g})"


def judge(goals: list[Goal]) -> int:
    """Print the goals and return the exit status: 0 when all are met, 1 otherwise."""
    print("\ngoals:")
    for goal in goals:
        print(f"  {goal}")
    return int(not all(goal.met for goal in goals))
