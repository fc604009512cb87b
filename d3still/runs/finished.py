"""Finished runs, read from their folders alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any

import numpy as np

from d3still.config import filled_in, read_tree
from d3still.errors import UserError
from d3still.files import require_regular, user_path
from d3still.runs.facts import SWEEP, stage_of
from d3still.runs.history import read_history

logger = logging.getLogger(__name__)

CONFIG, METRICS, HISTORY, PER_QUERY = "config.yaml", "metrics.json", "metrics.jsonl", "per_query.npz"
MEASURES = ("mAP", "mINP", "R1", "R5", "R10")
# What every config has and reporting reads: a config.yaml without it, or with other types, is of another program.
NEEDED: dict[str, dict[str, type | UnionType]] = {
    "DISTILLER": dict.fromkeys(
        ("TYPE", "STUDENT_NAME", "TEACHER_NAME", "TEACHER_MODEL_PATH", "STUDENT_PRETRAIN_PATH"), str
    ),
    "INPUT": dict.fromkeys(("STUDENT_SIZE_TEST", "TEACHER_SIZE_TEST", "SIZE_TEST"), list),
    "ACD": {"BASELINE": str, "ALPHA": int | float, "BETA": int | float},
    "DATASETS": {"NAMES": str, "SPLIT": str},
    "SOLVER": {"SEED": int, "OPTIMIZER_BUILDER": str},
    "TEST": {"TEST_METRIC": str, "EXCLUDE_SAME_CAMERA": bool},
    "OUTPUT_DIR": {"ROOT_PATH": str, "EXPERIMENT_NAME": str},
}
# dtype kinds of per_query.npz's arrays by the end of their name; all have an entry a query, the curve one a rank
PER_QUERY_KINDS = {"paths": "U", "ids": "iu", "names": "U", "ap": "f", "inp": "f", "hit": "iu", "cmc": "f"}
SHARES = ("ap", "inp", "cmc")  # from 0 to 1; NaN for a query without a match
BEST = 100 + 1e-6  # percent, with what a mean of ones may be off


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it lives.
        config: its frozen config, as a plain tree.
        metrics: its ``metrics.json``; ``AIR`` is None in stage 0.
        per_query: the arrays of ``per_query.npz`` (`read_per_query`); empty where it is not there.
        history: one record an epoch, from ``metrics.jsonl``; empty where it is not there.
        problems: a line for each of these two files that could not be read; it counts as not there.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    per_query: Mapping[str, np.ndarray] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()

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
        return user_path(filled_in(self.config, value, str(self.root))).resolve() if value else None


def read_run(folder: Path) -> Run:
    """The finished run of a folder.

    Raises:
        UserError: when it holds none, or its config or metrics cannot be read.
    """
    config = _read(folder / CONFIG, lambda text: read_tree(text, str(folder / CONFIG)))
    metrics = _read(folder / METRICS, json.loads)
    lacking = [
        f"{section}.{key}"
        for section, keys in NEEDED.items()
        for key, kind in keys.items()
        if not isinstance(config.get(section), Mapping) or not _is_setting(config[section].get(key), kind)
    ]
    if lacking:
        raise UserError(f"{folder / CONFIG} is not the config of a run: it lacks a proper {', '.join(lacking)}")
    for protocol in ("AIR", "SIR"):
        scores = metrics.get(protocol)
        if scores is None and protocol == "AIR" and stage_of(config) == 0:
            continue
        if not isinstance(scores, Mapping) or not all(_is_percent(scores.get(m)) for m in MEASURES):
            raise UserError(
                f"{folder / METRICS} lacks {protocol} with {', '.join(MEASURES)}, from 0 to 100; test the run again"
            )
    problems: list[str] = []
    per_query = _or_none(lambda: read_per_query(folder / PER_QUERY), problems) or {}
    history = _or_none(lambda: read_history(folder / HISTORY), problems) or []
    return Run(folder, config, metrics, per_query, history, problems)


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs of folders, and a line for each that cannot be read."""
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            logger.warning("left out: %s", error)
            problems.append(str(error))
    return runs, problems


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """All finished runs below a folder but those of sweeps, sorted by path, and a line for each unreadable one.

    Raises:
        UserError: when there is no run.
    """
    finished = (path.parent for path in sorted(root.rglob(METRICS)) if (path.parent / CONFIG).exists())
    found, problems = read_runs(finished)
    runs = [run for run in found if SWEEP not in PurePosixPath(run.experiment).parts]
    if not runs:
        raise UserError(
            f"no finished run below {root}: none of its folders holds both {CONFIG} and {METRICS}; "
            "train something first, or name the OUTPUT_DIR.ROOT_PATH of your runs"
        )
    return runs, problems


def _is_setting(value: Any, kind: type | UnionType) -> bool:
    if kind is list:  # a height and a width
        return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)
    return isinstance(value, kind)


def _is_percent(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= BEST  # NaN is neither


def _or_none(read: Callable[[], Any], problems: list[str]) -> Any:
    """What is read; None where that fails, with the reason among the problems."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _read(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        require_regular(path)
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {path.parent} holds no finished run") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unreadable"
        raise UserError(f"{path} cannot be read ({reason}); run the experiment again") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} does not hold what a run writes; run the experiment again")
    return value


def read_per_query(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name; none where there is no file.

    ``query_paths``, ``query_ids`` and (of newer runs) ``query_names`` (Q,), and for each protocol ``AIR_ap``,
    ``AIR_inp``, ``AIR_first_hit`` (Q,) and ``AIR_cmc``, as `RankingResult` has them.

    Raises:
        UserError: when the file is damaged or holds something else.
    """
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return {}
    except Exception as error:  # zipfile, zlib and numpy have each their own for what is damaged
        raise UserError(f"{path} is damaged ({error}); test the run again") from error
    if not _is_per_query(arrays):
        raise UserError(f"{path} does not hold what a run writes; test the run again")
    return arrays


def _is_per_query(arrays: Mapping[str, np.ndarray]) -> bool:
    ends = {name: name.rpartition("_")[2] for name in arrays}
    known = {name: array for name, array in arrays.items() if ends[name] in PER_QUERY_KINDS}
    needed = {"query_paths", "query_ids"} | {
        f"{name.removesuffix('_ap')}_{part}" for name in known if ends[name] == "ap" for part in ("first_hit", "cmc")
    }
    if not needed <= known.keys():
        return False
    for name, array in known.items():
        if array.ndim != 1 or array.dtype.kind not in PER_QUERY_KINDS[ends[name]]:
            return False
        if ends[name] != "cmc" and len(array) != len(arrays["query_paths"]):
            return False
        if ends[name] in SHARES and not (np.isnan(array) | ((array >= 0) & (array <= 1))).all():
            return False
    return True
