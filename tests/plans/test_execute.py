"""Carrying out a plan: what is finished is skipped, a failure is one line, the rest goes on."""

import logging

import pytest

from d3still.errors import UserError
from d3still.plans.execute import carry_out, plan_text
from d3still.plans.plan import Planner
from tests.tiny import REPOSITORY


class Trainer:
    """Stands for `Training`: leaves metrics, or fails for the experiments named."""

    def __init__(self, failing=()):
        self.failing, self.trained = failing, []

    def check(self, planned, plan):
        pass

    def is_finished(self, planned):
        return (planned.folder / "metrics.json").exists()

    def train(self, planned):
        self.trained.append(planned.name)
        if planned.cfg.OUTPUT_DIR.EXPERIMENT_NAME in self.failing:
            raise UserError("the loss is not finite in epoch 3")
        planned.folder.mkdir(parents=True)
        (planned.folder / "metrics.json").write_text("{}")


@pytest.fixture
def plan(tmp_path):
    files = [REPOSITORY / f"configs/emoji/{name}.yaml" for name in ("acd_rop", "acd_fitnet")]
    planner = Planner(files, ["OUTPUT_DIR.ROOT_PATH", str(tmp_path)])
    planner.add_all([1, 2], ["acd"])
    return planner.runs


def test_everything_is_trained_once_and_then_skipped(plan):
    train = Trainer()
    assert {outcome.state for outcome in carry_out(plan, train)} == {"trained"}
    assert train.trained == [run.name for run in plan]
    again = Trainer()
    assert {outcome.state for outcome in carry_out(plan, again)} == {"finished"}
    assert not again.trained


def test_a_killed_comparison_goes_on_where_it_stopped(plan):
    class Killed(BaseException):
        pass

    class Dying(Trainer):
        def train(self, planned):
            if len(self.trained) == 3:
                raise Killed
            super().train(planned)

    with pytest.raises(Killed):
        carry_out(plan, Dying())
    train = Trainer()
    outcomes = carry_out(plan, train)
    assert train.trained == [run.name for run in plan[3:]] and all(outcome.usable for outcome in outcomes)


def test_a_failure_stops_only_what_builds_on_it(plan, caplog):
    train = Trainer(failing=["emoji/rop"])
    with caplog.at_level(logging.ERROR, logger="d3still"):
        outcomes = carry_out(plan, train)
    states = {outcome.planned.name: outcome.state for outcome in outcomes}
    for seed in (1, 2):
        assert states[f"emoji/rop seed {seed}"] == "failed"
        assert states[f"emoji/acd_rop seed {seed}"] == "blocked"
        assert states[f"emoji/acd_fitnet seed {seed}"] == "trained"
    messages = [record.getMessage() for record in caplog.records]
    assert "emoji/rop seed 1 failed: the loss is not finite in epoch 3" in messages
    assert "emoji/acd_rop seed 1 blocked: not started, since it needs emoji/rop seed 1" in messages
    assert all("\n" not in message for message in messages)


def test_results_of_another_config_are_a_failure(plan):
    class Other(Trainer):
        def is_finished(self, planned):
            raise UserError("holds a run with another config: SOLVER.MAX_EPOCHS: 5 → 20")

    train = Other()
    outcomes = carry_out(plan, train)
    assert not train.trained and {outcome.state for outcome in outcomes} == {"failed", "blocked"}


def test_a_run_that_leaves_nothing_is_a_failure(plan):
    class Idle(Trainer):
        def train(self, planned):
            pass

    outcomes = carry_out(plan[:1], Idle())
    assert outcomes[0].state == "failed" and "metrics.json" in outcomes[0].reason


def test_the_dry_run_says_what_is_there(plan):
    carry_out(plan[:1], Trainer())
    plan[1].folder.mkdir(parents=True)
    (plan[1].folder / "last.pth").touch()
    lines = plan_text(plan, Trainer()).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["finished", "started", "missing"]
    assert lines[-1] == f"{len(plan) - 1} of {len(plan)} runs are left to train"
