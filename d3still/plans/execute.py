"""Carries out a plan: trains what is missing, skips what is finished, goes on after a failure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d3still.errors import UserError
from d3still.plans.plan import PlannedRun
from d3still.plans.training import Training
from d3still.runs.finished import METRICS
from d3still.runs.folder import RunFolder
from d3still.text import visible

logger = logging.getLogger(__name__)

FINISHED, STARTED, MISSING, TRAINED, FAILED, BLOCKED = "finished", "started", "missing", "trained", "failed", "blocked"


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: a state, and the reason of a failure in one line."""

    planned: PlannedRun
    state: str
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether its numbers are there."""
        return self.state in (FINISHED, TRAINED)


def state_of(planned: PlannedRun, training: Training) -> Outcome:
    """How far a run is, without changing anything."""
    try:
        if training.is_finished(planned):
            return Outcome(planned, FINISHED)
    except UserError as error:
        return Outcome(planned, FAILED, str(error))
    return Outcome(planned, STARTED if RunFolder(planned.folder).last.exists() else MISSING)


def carry_out(plan: Sequence[PlannedRun], training: Training) -> list[Outcome]:
    """Train what the plan lacks, in its order; each run comes after those it needs.

    All are checked before the first is trained. A run that fails is reported in one line; what needs it is not
    started, and the rest goes on.
    """
    outcomes = {outcome.planned.folder: outcome for outcome in _refused(plan, training)}
    for number, planned in enumerate(plan, start=1):
        if planned.folder not in outcomes:
            outcome = _carry_out_one(planned, f"{number}/{len(plan)}", training, outcomes)
            if not outcome.usable:
                logger.error("%s %s: %s", planned.name, outcome.state, outcome.reason)
            outcomes[planned.folder] = outcome
    return [outcomes[planned.folder] for planned in plan]


def _refused(plan: Sequence[PlannedRun], training: Training) -> Iterator[Outcome]:
    """The runs left to train that cannot work, but for those that need such a one; they are told."""
    hopeless: set[Path] = set()
    for planned in plan:
        if hopeless.intersection(planned.needs):
            hopeless.add(planned.folder)
        elif state_of(planned, training).state in (STARTED, MISSING):
            try:
                training.check(planned, plan)
            except UserError as error:
                hopeless.add(planned.folder)
                logger.error("%s %s: %s", planned.name, FAILED, error)
                yield Outcome(planned, FAILED, str(error))


def _carry_out_one(planned: PlannedRun, place: str, training: Training, former: Mapping[Path, Outcome]) -> Outcome:
    missing = [former[need].planned.name for need in planned.needs if not former[need].usable]
    if missing:
        return Outcome(planned, BLOCKED, f"not started, since it needs {missing[0]}")
    outcome = state_of(planned, training)
    if outcome.state in (FINISHED, FAILED):
        logger.info("%s %s: %s", place, planned.name, outcome.state)
        return outcome
    logger.info("%s %s: %s", place, planned.name, "resuming" if outcome.state == STARTED else "training")
    try:
        training.train(planned)
    except UserError as error:
        return Outcome(planned, FAILED, str(error))
    if not (planned.folder / METRICS).exists():
        return Outcome(planned, FAILED, f"it left no {METRICS} in {planned.folder}")
    return Outcome(planned, TRAINED)


def plan_text(plan: Sequence[PlannedRun], training: Training) -> str:
    """The plan, a line a run: its state, its name, and what is wrong with it if anything is."""
    outcomes = [state_of(planned, training) for planned in plan]
    lines = [visible(f"{o.state:9} {o.planned.name}" + (f": {o.reason}" if o.reason else "")) for o in outcomes]
    left = sum(outcome.state in (STARTED, MISSING) for outcome in outcomes)
    return "\n".join([*lines, f"{left} of {len(plan)} runs are left to train"]) + "\n"
