"""Which runs belong together: a stage-1 experiment, the gallery network it used, and what was built on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from d3still.runs.facts import BASELINE, LONGER, baseline_of, pair_of, variant_of
from d3still.runs.finished import Run

T = TypeVar("T")
FamilyKey = tuple[str, str, "Path | None"]  # pair, baseline, the stage-1 experiment's folder


@dataclass
class Family:
    """A baseline experiment and its variants.

    Attributes:
        pair: dataset and networks.
        baseline_name: the baseline's registered name.
        experiment: folder of the stage-1 experiment; None where it is not among the runs.
        label: that name, with the experiment's where two experiments share it.
        variants: variant → seed → run.
        galleries: seed → the stage-0 run of the baseline's gallery network.
    """

    pair: str
    baseline_name: str
    experiment: Path | None
    label: str = ""
    variants: dict[str, dict[int, Run]] = field(default_factory=dict)
    galleries: dict[int, Run] = field(default_factory=dict)


def group(runs: list[Run]) -> list[Family]:
    """Families in the order in which their first run comes; runs of stage 0 only serve as galleries.

    A run of stage 2, or a stage 1 that goes on, belongs to the stage-1 run whose weights it names; where those are
    not among ``runs``, to the only baseline experiment of its pair and baseline.
    """
    by_folder = {run.folder.resolve(): run for run in runs}
    families: dict[FamilyKey, Family] = {}
    members: dict[FamilyKey, list[Run]] = {}
    for run in runs:
        if run.stage > 0:
            key = _family_key(run, by_folder, runs)
            families.setdefault(key, Family(*key))
            members.setdefault(key, []).append(run)
    for key, family in families.items():
        family.variants = _named(members[key])
        for seed, run in family.variants.get(BASELINE, {}).items():
            gallery = _of_weights(run, "TEACHER_MODEL_PATH", by_folder)
            if gallery is not None and gallery.stage == 0:
                family.galleries[seed] = gallery
    _label(families.values())
    return list(families.values())


def _family_key(run: Run, by_folder: dict[Path, Run], runs: list[Run]) -> FamilyKey:
    names = pair_of(run.config), baseline_of(run.config)
    if run.stage == 1 and variant_of(run.config) != LONGER:
        return *names, _experiment(run)
    source = _of_weights(run, "STUDENT_PRETRAIN_PATH", by_folder)
    if source is not None and source.stage == 1:
        return *names, _experiment(source)
    baselines = (other for other in runs if other.stage == 1 and variant_of(other.config) == BASELINE)
    experiments = {_experiment(o) for o in baselines if (pair_of(o.config), baseline_of(o.config)) == names}
    return *names, experiments.pop() if len(experiments) == 1 else None


def _experiment(run: Run) -> Path:
    """The folder that holds an experiment's seeds: two logs may hold experiments of one name."""
    return run.folder.resolve().parent


def _of_weights(run: Run, key: str, by_folder: dict[Path, Run]) -> Run | None:
    path = run.weights(key)
    return None if path is None else by_folder.get(path.parent)


def _named(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """Variant → seed → run; of several experiments that are the same variant all but one add their own name."""
    by_experiment = _collect(runs, _experiment)
    kinds = {experiment: variant_of(members[0].config) for experiment, members in by_experiment.items()}
    names = _told_apart(kinds)
    return {names[name]: {run.seed: run for run in members} for name, members in by_experiment.items()}


def _label(families: Iterable[Family]) -> None:
    for names, members in _collect(families, lambda family: (family.pair, family.baseline_name)).items():
        labels = _told_apart({family.experiment: names[1] for family in members})
        for family in members:
            family.label = labels[family.experiment]


def _told_apart(kinds: Mapping[Path | None, str]) -> dict[Path | None, str]:
    """Experiment → its kind, made unique: the shortest path of a kind keeps it, others add their own end."""
    names: dict[Path | None, str] = {}
    for kind, experiments in _collect(kinds, lambda experiment: kinds[experiment]).items():
        first, *others = sorted(experiments, key=lambda path: (path is None, len(str(path)), str(path)))
        names[first] = kind
        shared = os.path.commonpath([path.parent for path in experiments if path is not None] or [""])
        for path in others:
            names[path] = (
                f"{kind} ({'its baseline is missing' if path is None else path.relative_to(shared).as_posix()})"
            )
    return names


def _collect(items: Iterable[T], key: Callable[[T], Hashable]) -> dict:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
