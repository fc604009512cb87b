"""Which runs belong together: a stage-1 experiment, the gallery network it used, and what was built on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from d3still.reporting.published import published_scores
from d3still.reporting.rows import Result, Row
from d3still.runs.facts import BASELINE, VARIANTS, baseline_of, pair_of, variant_of
from d3still.runs.finished import Run

T = TypeVar("T")
Folders = dict[Path, Run]


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """A row for each variant of each family of runs, a baseline before its variants, families by their first run.

    A run of stage 2, or a stage 1 that goes on, belongs to the stage-1 run whose weights it names; where those are
    not among ``runs``, to the only baseline experiment of its pair and baseline. Runs of stage 0 only give the
    baselines' symmetric results.
    """
    by_folder = {run.folder.resolve(): run for run in runs}
    families = _collect((run for run in by_folder.values() if run.stage > 0), lambda run: _family_of(run, by_folder))
    labels = {}  # a baseline's registered name, with its experiment's where two experiments share it
    for (pair, baseline), keys in _collect(families, lambda key: key[:2]).items():
        for experiment, ending in _endings([key[2] for key in keys]):
            labels[pair, baseline, experiment] = baseline + ending
    rows = []
    for key, members in families.items():
        published = published_scores(*key[:2])
        for variant, by_seed in _variants(members):
            is_baseline = variant == BASELINE
            results = {
                s: Result(run, _gallery_of(run, by_folder) if is_baseline else run) for s, run in by_seed.items()
            }
            rows.append(Row(key[0], labels[key], variant, results, published=published.get(variant)))
    return rows


def _family_of(run: Run, by_folder: Folders) -> tuple[str, str, Path | None]:
    """Pair, baseline and the stage-1 experiment's folder, which is None where it is not among the runs."""
    names = pair_of(run.config), baseline_of(run.config)
    if _is_baseline(run):
        return *names, _experiment(run)
    source = _of_weights(run, "STUDENT_PRETRAIN_PATH", by_folder)
    if source is not None and source.stage == 1:
        return *names, _experiment(source)
    baselines = filter(_is_baseline, by_folder.values())
    experiments = {_experiment(o) for o in baselines if (pair_of(o.config), baseline_of(o.config)) == names}
    return *names, experiments.pop() if len(experiments) == 1 else None


def _is_baseline(run: Run) -> bool:
    return run.stage == 1 and variant_of(run.config) == BASELINE


def _experiment(run: Run) -> Path:
    """The folder that holds an experiment's seeds: two logs may hold experiments of one name."""
    return run.folder.resolve().parent


def _gallery_of(run: Run, by_folder: Folders) -> Run:
    """The stage-0 run of a baseline's gallery network; the baseline's own where that is not among the runs."""
    gallery = _of_weights(run, "TEACHER_MODEL_PATH", by_folder)
    return gallery if gallery is not None and gallery.stage == 0 else run


def _of_weights(run: Run, key: str, by_folder: Folders) -> Run | None:
    path = run.weights(key)
    return None if path is None else by_folder.get(path.parent)


def _variants(runs: list[Run]) -> list[tuple[str, dict[int, Run]]]:
    """(name, seed → run) in the order of `VARIANTS`; of experiments of one variant all but one add their own name."""
    by_experiment = _collect(runs, _experiment)
    kinds = _collect(by_experiment, lambda experiment: variant_of(by_experiment[experiment][0].config))
    found = []
    for kind, experiments in kinds.items():
        place = VARIANTS.index(kind) if kind in VARIANTS else len(VARIANTS)
        for experiment, ending in _endings(experiments):
            found.append((place, kind + ending, {run.seed: run for run in by_experiment[experiment]}))
    return [(name, by_seed) for _, name, by_seed in sorted(found, key=lambda variant: variant[:2])]


def _endings(experiments: Collection[Path | None]) -> Iterator[tuple[Path | None, str]]:
    """What tells experiments of one kind apart: nothing at the one of the shortest path, their own end at others."""
    first, *others = sorted(experiments, key=lambda path: (path is None, len(str(path)), str(path)))
    yield first, ""
    shared = os.path.commonpath([path.parent for path in experiments if path is not None] or [""])
    for path in others:
        yield path, f" ({'its baseline is missing' if path is None else path.relative_to(shared).as_posix()})"


def _collect(items: Iterable[T], key: Callable[[T], Hashable]) -> dict:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
