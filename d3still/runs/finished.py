"""Finished runs, read from their folders alone."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from d3still.config import filled_in
from d3still.errors import UserError
from d3still.runs.facts import SWEEP, stage_of
from d3still.runs.history import read_history

logger = logging.getLogger(__name__)

CONFIG, METRICS, HISTORY, PER_QUERY = "config.yaml", "metrics.json", "metrics.jsonl", "per_query.npz"
MEASURES = ("mAP", "mINP", "R1", "R5", "R10")
# What every config has and reporting reads: a config.yaml without it is of another program.
NEEDED = {
    "DISTILLER": ("TYPE", "STUDENT_NAME", "TEACHER_NAME", "TEACHER_MODEL_PATH", "STUDENT_PRETRAIN_PATH"),
    "INPUT": ("STUDENT_SIZE_TEST", "TEACHER_SIZE_TEST", "SIZE_TEST"),
    "ACD": ("BASELINE", "ALPHA", "BETA"),
    "DATASETS": ("NAMES", "SPLIT"),
    "SOLVER": ("SEED", "OPTIMIZER_BUILDER"),
    "TEST": ("TEST_METRIC", "EXCLUDE_SAME_CAMERA"),
    "OUTPUT_DIR": ("ROOT_PATH", "EXPERIMENT_NAME"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it lives.
        config: its frozen config, as a plain tree.
        metrics: its ``metrics.json``; ``AIR`` is None in stage 0.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def stage(self) -> int:
        """0, 1 or 2."""
        return stage_of(self.config)

    @property
    def seed(self) -> int:
        """``SOLVER.SEED``."""
        return self.config["SOLVER"]["SEED"]

    @property
    def experiment(self) -> str:
        """``OUTPUT_DIR.EXPERIMENT_NAME``, such as ``emoji/acd_rop``."""
        return self.config["OUTPUT_DIR"]["EXPERIMENT_NAME"]

    @cached_property
    def root(self) -> Path:
        """The folder that holds the experiments; where the log was moved to, not where it was written."""
        parts = (*PurePosixPath(self.experiment).parts, f"seed{self.seed}")
        place = self.folder.resolve()
        if place.parts[-len(parts) :] == parts:
            return place.parents[len(parts) - 1]
        return Path(self.config["OUTPUT_DIR"]["ROOT_PATH"])

    def weights(self, key: str) -> Path | None:
        """The file that a weight key of DISTILLER names, with ``{root}`` where the log is now; None if empty."""
        value = self.config["DISTILLER"][key]
        return Path(filled_in(self.config, value, str(self.root))).expanduser().resolve() if value else None

    @cached_property
    def per_query(self) -> Mapping[str, np.ndarray]:
        """The arrays of ``per_query.npz``; empty where there is none.

        Raises:
            UserError: when it is damaged.
        """
        path = self.folder / PER_QUERY
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}); run the experiment again") from error

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One record an epoch, from ``metrics.jsonl``."""
        return read_history(self.folder / HISTORY)


def read_run(folder: Path) -> Run:
    """The finished run of a folder.

    Raises:
        UserError: when it holds none, or a file of it cannot be read.
    """
    config, metrics = _read(folder / CONFIG, yaml.safe_load), _read(folder / METRICS, json.loads)
    lacking = [
        f"{section}.{key}"
        for section, keys in NEEDED.items()
        for key in keys
        if not isinstance(config.get(section), Mapping) or key not in config[section]
    ]
    if lacking:
        raise UserError(f"{folder / CONFIG} is not the config of a run: it lacks {', '.join(lacking)}")
    for protocol in ("AIR", "SIR"):
        scores = metrics.get(protocol)
        if scores is None and protocol == "AIR" and stage_of(config) == 0:
            continue
        if not isinstance(scores, Mapping) or not all(isinstance(scores.get(m), int | float) for m in MEASURES):
            raise UserError(f"{folder / METRICS} lacks {protocol} with {', '.join(MEASURES)}; run it again")
    return Run(folder, config, metrics)


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """All finished runs below a folder but those of sweeps, sorted by path, and a line for each unreadable one.

    Raises:
        UserError: when there is no run.
    """
    runs, problems = [], []
    for folder in _folders_with_metrics(root):
        try:
            run = read_run(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if SWEEP not in PurePosixPath(run.experiment).parts:
            runs.append(run)
    for problem in problems:
        logger.warning("left out: %s", problem)
    if not runs:
        raise UserError(
            f"no finished run below {root}: none of its folders holds both {CONFIG} and {METRICS}; "
            "train something first, or name the OUTPUT_DIR.ROOT_PATH of your runs"
        )
    return runs, problems


def _folders_with_metrics(root: Path) -> Iterator[Path]:
    yield from (path.parent for path in sorted(root.rglob(METRICS)) if (path.parent / CONFIG).exists())


def _read(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {path.parent} holds no finished run") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unreadable"
        raise UserError(f"{path} cannot be read ({reason}); run the experiment again") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} does not hold what a run writes; run the experiment again")
    return value
