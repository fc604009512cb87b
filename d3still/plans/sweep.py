"""Which runs a sweep needs: stage 2 at several values of one key, with the stages before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3still.config import Config, run_dir
from d3still.config.sections import leaves
from d3still.errors import UserError
from d3still.plans.plan import PlannedRun, Planner
from d3still.runs.facts import SWEEP, stage_of


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """The runs of a sweep.

    Attributes:
        key: what is swept.
        runs: by value and seed.
        all_runs: with those that have to be there first, in order.
        folder: of the experiment's sweeps.
    """

    key: str
    runs: Mapping[Any, Mapping[int, PlannedRun]]
    all_runs: Sequence[PlannedRun]
    folder: Path


def plan_sweep(
    file: str | Path, key: str, values: Sequence[str], seeds: Sequence[int], settings: Sequence[str]
) -> SweepPlan:
    """Plan stage 2 at each value and seed, with the stages before it.

    A value's run lives in ``EXPERIMENT_NAME/sweep/KEY=VALUE``. The config's own value is the experiment itself,
    so that sweeps over several keys, and a comparison, share that run.

    Raises:
        UserError: for a config that is not of stage 2, an unknown key or a value that it cannot have.
    """
    planner = Planner([file], settings)
    (path,) = planner.files
    runs: dict[Any, dict[int, PlannedRun]] = {}
    for seed in dict.fromkeys(seeds):
        own = planner.load(path, seed)
        if stage_of(own) != 2:
            raise UserError(f"{path} is not of stage 2 (DISTILLER.TYPE: ACD); a sweep reruns stage 2 only")
        for text in values:
            swept = planner.load(path, seed, key, text)
            value = value_of(swept, key)
            name = f"{own.OUTPUT_DIR.EXPERIMENT_NAME}/{SWEEP}/{key}={plain(value)}"
            extra = {} if value == value_of(own, key) else {key: text, "OUTPUT_DIR.EXPERIMENT_NAME": name}
            runs.setdefault(value, {})[seed] = planner.add(path, seed, extra)
    ordered = sorted(runs, key=lambda value: (isinstance(value, str), value))
    return SweepPlan(key, {value: runs[value] for value in ordered}, planner.runs, run_dir(own).parent / SWEEP)


def value_of(cfg: Config, key: str) -> Any:
    """A config's value by its full key; lists become tuples."""
    value = dict(leaves(cfg))[key]
    return tuple(value) if isinstance(value, list) else value


def plain(value: Any) -> str:
    """A value in a file's name and on an axis: 3, 0.05, True."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "×".join(map(plain, value)) if isinstance(value, tuple) else str(value)
