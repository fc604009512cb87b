"""Which runs belong together: a stage-1 experiment, the gallery network it used, and what was built on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from d3still.reporting.experiment import BASELINE, baseline_of, pair_of, variant_of
from d3still.reporting.runs import Run

T = TypeVar("T", bound=Hashable)


@dataclass
class Family:
    """A baseline experiment and its variants.

    Attributes:
        pair: dataset and networks.
        baseline_name: the baseline's registered name.
        label: that name, with the experiment's where two experiments share it.
        variants: variant → seed → run.
        galleries: seed → the stage-0 run of the baseline's gallery network.
    """

    pair: str
    baseline_name: str
    experiment: str
    label: str = ""
    variants: dict[str, dict[int, Run]] = field(default_factory=dict)
    galleries: dict[int, Run] = field(default_factory=dict)


def group(runs: list[Run]) -> list[Family]:
    """Families in the order in which their first run comes; runs of stage 0 only serve as galleries.

    A stage-2 run belongs to the stage-1 run whose weights it names; where those are not among ``runs``, to
    the only baseline experiment of its pair and baseline.
    """
    by_folder = {run.folder.resolve(): run for run in runs}
    families: dict[tuple[str, str, str], Family] = {}
    members: dict[tuple[str, str, str], list[Run]] = {}
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


def _family_key(run: Run, by_folder: dict[Path, Run], runs: list[Run]) -> tuple[str, str, str]:
    names = pair_of(run.config), baseline_of(run.config)
    if run.stage == 1:
        return *names, run.experiment
    source = _of_weights(run, "STUDENT_PRETRAIN_PATH", by_folder)
    if source is not None and source.stage == 1:
        return *names, source.experiment
    baselines = (other for other in runs if other.stage == 1)
    experiments = {o.experiment for o in baselines if (pair_of(o.config), baseline_of(o.config)) == names}
    return *names, experiments.pop() if len(experiments) == 1 else ""


def _of_weights(run: Run, key: str, by_folder: dict[Path, Run]) -> Run | None:
    path = run.weights(key)
    return None if path is None else by_folder.get(path.parent)


def _named(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """Variant → seed → run; of several experiments that are the same variant all but one add their own name."""
    by_experiment = _collect(runs, lambda run: run.experiment)
    kinds = {experiment: variant_of(members[0].config) for experiment, members in by_experiment.items()}
    names = _told_apart(kinds)
    return {names[name]: {run.seed: run for run in members} for name, members in by_experiment.items()}


def _label(families: Iterable[Family]) -> None:
    for names, members in _collect(families, lambda family: (family.pair, family.baseline_name)).items():
        labels = _told_apart({family.experiment: names[1] for family in members})
        for family in members:
            family.label = labels[family.experiment]


def _told_apart(kinds: Mapping[str, str]) -> dict[str, str]:
    """Experiment → its kind, made unique: the shortest experiment name of a kind keeps it, others add theirs."""
    names: dict[str, str] = {}
    for experiment in sorted(kinds, key=lambda name: (len(name), name)):
        kind = kinds[experiment]
        names[experiment] = f"{kind} ({PurePosixPath(experiment).name})" if kind in names.values() else kind
    return names


def _collect(items: Iterable[T], key: Callable[[T], Hashable]) -> dict:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
