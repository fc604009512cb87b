"""Where a run lives and where weights are found."""

from __future__ import annotations

from pathlib import Path

from d3still.config.node import Config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = "configs"
CHECKPOINTS = "checkpoints"


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
    return "/".join((cfg.DATASETS.NAMES, *folders, file.stem))


def run_dir(cfg: Config) -> Path:
    """The run's folder, ``ROOT_PATH/EXPERIMENT_NAME/seedN``; it is not created."""
    root = Path(cfg.OUTPUT_DIR.ROOT_PATH).expanduser()
    return root / cfg.OUTPUT_DIR.EXPERIMENT_NAME / f"seed{cfg.SOLVER.SEED}"


def weight_path(cfg: Config, value: str) -> Path:
    """The file that a weight key means.

    ``{root}`` stands for OUTPUT_DIR.ROOT_PATH and ``{seed}`` for SOLVER.SEED. A relative path is looked for
    in the current folder, the repository, and the ``checkpoints`` folder of either; where it is nowhere,
    the first place is returned, for the caller to report.
    """
    filled = value.replace("{root}", cfg.OUTPUT_DIR.ROOT_PATH).replace("{seed}", str(cfg.SOLVER.SEED))
    path = Path(filled).expanduser()
    if path.is_absolute():
        return path
    places = (Path.cwd(), REPOSITORY, Path.cwd() / CHECKPOINTS, REPOSITORY / CHECKPOINTS)
    return next((place / path for place in places if (place / path).exists()), Path.cwd() / path)
