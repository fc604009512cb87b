"""Where a run lives and where weights are found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from d3still.config.node import Config
from d3still.config.sections import known_defaults
from d3still.files import user_path

_PACKAGE = Path(__file__).resolve().parents[1]
#: What holds ``configs/`` and ``datasets/``: the repository, or where pip put these beside the package's code.
REPOSITORY = _PACKAGE / "share" if (_PACKAGE / "share").is_dir() else _PACKAGE.parent
CONFIGS = "configs"
CHECKPOINTS = "checkpoints"
OWN_DATASETS = ("folder", "csv")  # registered names that any images may have


def default_experiment_name(cfg: Config, file: Path) -> str:
    """DATASET/STEM, with the folders between ``configs/<dataset>/`` and the file kept in between.

    ``configs/msmt17/PAIR/rop.yaml`` becomes ``MSMT17/PAIR/rop``; a file outside ``configs/`` has no folders
    that would mean anything.
    """
    file = file.resolve()
    folders: tuple[str, ...] = ()
    for place in (Path.cwd(), REPOSITORY):
        root = (place / CONFIGS).resolve()
        if file.is_relative_to(root):
            folders = file.relative_to(root).parts[1:-1]
            break
    return "/".join((dataset_name(cfg), *folders, file.stem))


def dataset_name(cfg: Mapping[str, Any]) -> str:
    """DATASETS.NAMES; of one's own images with the name of their folder or table, so that two sets are two."""
    name, root = cfg["DATASETS"]["NAMES"], cfg["DATASETS"]["ROOT_DIR"]
    if name not in OWN_DATASETS or root == known_defaults()["DATASETS.ROOT_DIR"]:
        return name
    place = user_path(root, "DATASETS.ROOT_DIR").resolve()
    return f"{name}/{place.stem if place.suffix.lower() == '.csv' else place.name}"


def run_dir(cfg: Config) -> Path:
    """The run's folder, ``ROOT_PATH/EXPERIMENT_NAME/seedN``; it is not created."""
    root = user_path(cfg.OUTPUT_DIR.ROOT_PATH, "OUTPUT_DIR.ROOT_PATH")
    return root / cfg.OUTPUT_DIR.EXPERIMENT_NAME / f"seed{cfg.SOLVER.SEED}"


def repositories(cfg: Config) -> list[Path]:
    """Where relative paths are looked for after the current folder: the config's own repository, and this one."""
    file = getattr(cfg, "config_file", None)
    above = file.parents if file else ()
    own = [folder.parent for folder in above if folder.name == CONFIGS]
    return list(dict.fromkeys([*own[:1], REPOSITORY]))


def filled_in(cfg: Mapping[str, Any], value: str, root: str | None = None) -> str:
    """A weight path with a run's own names in it.

    ``{root}`` is OUTPUT_DIR.ROOT_PATH, ``{seed}`` SOLVER.SEED, ``{dataset}`` `dataset_name`, ``{folder}`` the
    experiment's own folder (OUTPUT_DIR.EXPERIMENT_NAME without its last part) and ``{run}`` this run's folder.

    Args:
        cfg: a config, or the plain tree of one.
        value: what a weight key holds.
        root: where the runs are now, if not in OUTPUT_DIR.ROOT_PATH.
    """
    experiment, seed = cfg["OUTPUT_DIR"]["EXPERIMENT_NAME"], cfg["SOLVER"]["SEED"]
    root = root or cfg["OUTPUT_DIR"]["ROOT_PATH"]
    names = {
        "root": root,
        "seed": str(seed),
        "dataset": dataset_name(cfg),
        "folder": PurePath(experiment).parent.as_posix(),
        "run": f"{root}/{experiment}/seed{seed}",
    }
    return re.sub(r"\{(\w+)\}", lambda found: names.get(found[1], found[0]), value)


def weight_path(cfg: Config, value: str) -> Path:
    """The file that a weight key means, with what `filled_in` says.

    A relative path is looked for in the current folder, the config's repository, this one, and the ``checkpoints``
    folder of each; where it is nowhere, the first place is returned, for the caller to report.
    """
    path = user_path(filled_in(cfg, value))
    if path.is_absolute():
        return path
    folders = [Path.cwd(), *repositories(cfg)]
    places = [*folders, *(folder / CHECKPOINTS for folder in folders)]
    return next((place / path for place in places if (place / path).exists()), Path.cwd() / path)
