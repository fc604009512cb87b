"""Training as commands that need many runs do it: each run in a process of its own."""

from __future__ import annotations

from pathlib import Path

import _bootstrap  # noqa: F401  (puts the repository on the import path)
import yaml

from d3still.config import dump_config, load_config, read_tree
from d3still.engine import train
from d3still.errors import UserError
from d3still.reporting.child import run_in_child
from d3still.reporting.plan import PlannedRun
from d3still.runs.folder import RunFolder, config_differences


def train_in_child(planned: PlannedRun) -> None:
    """Train one run, or go on with it.

    Raises:
        UserError: whatever went wrong, in one line.
    """
    run_in_child(train_file, planned.file, planned.settings)


def train_file(file: Path, settings: tuple[str, ...]) -> None:
    """What the child does."""
    train(load_config(file, settings))


def is_finished(planned: PlannedRun) -> bool:
    """Whether the run's folder holds its results.

    Raises:
        UserError: when it holds those of another config.
    """
    folder = RunFolder(planned.folder)
    if not (folder.metrics.exists() and folder.config.exists()):
        return False
    written = read_tree(folder.config.read_text(encoding="utf-8"), str(folder.config))
    differing = config_differences(written, yaml.safe_load(dump_config(planned.cfg)))
    if differing:
        raise UserError(
            f"{folder.path} holds a run with another config: {'; '.join(differing)}. Restore these settings, set "
            "another OUTPUT_DIR.ROOT_PATH, or remove the folder"
        )
    return True
