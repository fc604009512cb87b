"""What `carry_out` needs to train a plan's runs: each in a process of its own, checked before, and known again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from d3still.config import Config, load_config, plain_tree, repositories
from d3still.data import RetrievalDataset, build_dataset
from d3still.engine import train
from d3still.engine.setup import (
    refuse_other_inputs,
    require_batches,
    require_fitting_weights,
    require_matches,
    start_files,
)
from d3still.errors import UserError
from d3still.logs import early_records
from d3still.plans.child import run_in_child
from d3still.plans.plan import PlannedRun
from d3still.runs.facts import WEIGHT_KEYS, stage_of
from d3still.runs.finished import read_run
from d3still.runs.folder import RunFolder, config_differences
from d3still.runs.inputs import images_fingerprint, weights_fingerprint


class Training:
    """Trains and judges the runs of one plan; a dataset that they share is read once."""

    def __init__(self) -> None:
        self._dataset = functools.cache(_dataset)
        self._images = functools.cache(lambda *words: images_fingerprint(self._dataset(*words)))

    def train(self, planned: PlannedRun) -> None:
        """Train one run, or go on with it.

        Raises:
            UserError: whatever went wrong, in one line.
        """
        run_in_child(train_file, planned.file, planned.settings)

    def is_finished(self, planned: PlannedRun) -> bool:
        """Whether the run's folder holds its results.

        Raises:
            UserError: when it holds those of another config, or of other start weights or images.
        """
        folder = RunFolder(planned.folder)
        if not (folder.metrics.exists() and folder.config.exists()):
            return False
        run = read_run(planned.folder)
        differing = config_differences(run.config, plain_tree(planned.cfg))
        if differing:
            raise UserError(
                f"{folder.path} holds a run with another config: {'; '.join(differing)}. Restore these settings, set "
                "another OUTPUT_DIR.ROOT_PATH, or remove the folder"
            )
        refuse_other_inputs(run.metrics.get("inputs", {}), self._inputs(planned.cfg), folder.path)
        return True

    def check(self, planned: PlannedRun, plan: Sequence[PlannedRun]) -> None:
        """Find out what labels alone tell of a run that is to be trained.

        Raises:
            UserError: its dataset has no match for any query, too few identities or images for a batch, or another
                number of identities than its start weights know.
        """
        cfg, dataset = planned.cfg, self._dataset(*_words(planned.cfg))
        require_matches(cfg, dataset)
        require_batches(cfg, dataset)
        sources = {source.folder: source for source in plan}
        for key, path in start_files(cfg).items():
            source = sources.get(path.parent.resolve())
            if source is not None:
                known = self._dataset(*_words(source.cfg)).num_classes
                if known != dataset.num_classes:
                    raise UserError(
                        f"its start weights, of {source.name}, know {known} identities, but its dataset has "
                        f"{dataset.num_classes}; give both the same DATASETS"
                    )
            elif key in WEIGHT_KEYS[stage_of(cfg)]:
                require_fitting_weights(cfg, key, dataset.num_classes)

    def _inputs(self, cfg: Config) -> dict[str, Any]:
        """The fingerprint of what a config names, as far as it is there."""
        found: dict[str, Any] = {"weights": weights_fingerprint(start_files(cfg))}
        with suppress(UserError):  # finished runs need no images
            found["images"] = self._images(*_words(cfg))
        return found


def train_file(file: Path, settings: tuple[str, ...]) -> None:
    """What a run's own process does."""
    with early_records():
        train(load_config(file, settings))


def _words(cfg: Config) -> tuple[Any, ...]:
    """What tells a dataset, as `_dataset` takes it."""
    chosen = cfg.DATASETS
    return chosen.NAMES, chosen.ROOT_DIR, chosen.SPLIT, chosen.CAMERA_PATTERN, *repositories(cfg)


def _dataset(name: str, root: str, split: str, pattern: str, *places: Path) -> RetrievalDataset:
    return build_dataset(name, root, split=split, camera_pattern=pattern, repositories=places)
