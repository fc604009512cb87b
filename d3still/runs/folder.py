"""The folder of a run: which files it holds, and whether a config may go on in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from d3still.config import dump_config
from d3still.errors import UserError
from d3still.files import write_text
from d3still.runs.checkpoint import load_checkpoint, remove_leftovers
from d3still.runs.facts import differences
from d3still.runs.history import append_record, read_history, write_history

# Settings that may differ when a run is resumed: they change how it runs, not what it computes.
FREE_TO_CHANGE = (
    "EXPERIMENT.DEVICE",
    "EXPERIMENT.DEVICE_ID",
    "EXPERIMENT.IMPORTS",
    "DISTILLER.TEACHER_MODEL_PATH",
    "DISTILLER.STUDENT_PRETRAIN_PATH",
    "DATASETS.ROOT_DIR",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.MAX_PIXELS",
    "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_STEPS",
    "TEST.IMS_PER_BATCH",
    "TEST.WEIGHTS",
    "OUTPUT_DIR.ROOT_PATH",
    "OUTPUT_DIR.EXPERIMENT_NAME",
)
OWN_FILES = ("last.pth", "best.pth", "epoch_*.pth", "metrics.json", "metrics.jsonl", "per_query.npz", "config.yaml")
TENSORBOARD = "tensorboard"


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: ``log/DATASET/CONFIG_STEM/seedN``; created by `begin`, not before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "last.pth", path / "best.pth"
        self.metrics, self.history = path / "metrics.json", path / "metrics.jsonl"
        self.per_query, self.config, self.log = path / "per_query.npz", path / "config.yaml", path / "log.txt"
        self.tensorboard = path / TENSORBOARD

    def resumable(self, cfg: CfgNode, resume: str) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None for a fresh run.

        Args:
            cfg: this run's config.
            resume: ``auto`` (this folder's ``last.pth`` if there is one), ``never``, or a checkpoint's path.

        Raises:
            UserError: when the checkpoint belongs to another config, naming the keys that differ.
        """
        if resume == "never" or (resume == "auto" and not self.last.exists()):
            return None
        path = self.last if resume == "auto" else Path(resume)
        state = load_checkpoint(path)
        differing = config_differences(yaml.safe_load(state["config"]), yaml.safe_load(dump_config(cfg)))
        if differing:
            raise UserError(
                f"{path} belongs to a run with another config: {'; '.join(differing)}. Restore these settings, "
                "choose another OUTPUT_DIR.EXPERIMENT_NAME, or start afresh with --resume never"
            )
        return state

    def is_finished(self, state: dict[str, Any] | None) -> bool:
        """Whether the run that ``state`` is from has nothing left to do."""
        return state is not None and state["progress"]["finished"] and self.metrics.exists()

    def begin(self, cfg: CfgNode, from_epoch: int | None) -> None:
        """Make the folder ready: emptied of a former run's files (None), or with its history cut at an epoch."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        if from_epoch is None:
            for pattern in OWN_FILES:
                for old in self.path.glob(pattern):
                    old.unlink()
            shutil.rmtree(self.tensorboard, ignore_errors=True)
        else:
            kept = [record for record in read_history(self.history) if record["epoch"] < from_epoch]
            write_history(self.history, kept)
        write_text(self.config, dump_config(cfg))

    def add_epoch(self, record: dict[str, Any]) -> None:
        """Append one epoch's line to ``metrics.jsonl``."""
        append_record(self.history, record)


def config_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``KEY: before → now`` for each key that differs and may not: one that either run computes with."""
    return [f"{key}: {old} → {new}" for key, old, new in differences(before, now) if key not in FREE_TO_CHANGE]
