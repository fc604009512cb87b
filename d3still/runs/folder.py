"""The folder of a run: which files it holds, and whether a config may go on in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from d3still.config import dump_config, plain_tree, read_tree
from d3still.errors import UserError
from d3still.files import remove_leftovers, user_path, write_text
from d3still.locks import locked
from d3still.runs.checkpoint import load_checkpoint, save_checkpoint
from d3still.runs.facts import differences
from d3still.runs.former import FormerRun
from d3still.runs.history import read_history, write_history

# Settings that may differ when a run is resumed: they change how it runs, not what it computes.
FREE_TO_CHANGE = (
    "EXPERIMENT.DEVICE",
    "EXPERIMENT.DEVICE_ID",
    "EXPERIMENT.IMPORTS",
    "EXPERIMENT.CHECKPOINT_ACTIVATIONS",
    "EXPERIMENT.NUM_THREADS",
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
RESULTS = ("metrics.json", "per_query.npz", "ranked_lists.npz")
OWN_FILES = ("last.pth", "best.pth", "epoch_*.pth", "metrics.jsonl", "config.yaml", "tensorboard", *RESULTS)
# What a checkpoint to go on from holds beside the networks.
STATE = ("config", "progress", "optimizer", "optimizer_report", "scaler")


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: ``log/DATASET/CONFIG_STEM/seedN``; made by `alone`, not before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "last.pth", path / "best.pth"
        self.metrics, self.history = path / "metrics.json", path / "metrics.jsonl"
        self.per_query, self.config, self.log = path / "per_query.npz", path / "config.yaml", path / "log.txt"
        self.tensorboard = path / "tensorboard"
        self._former = FormerRun(path, self.last.name, (self.best.name, self.history.name, self.config.name))
        self._inputs: dict[str, Any] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the folder. If this fails before `save`, what `begin` replaced is put back.

        Raises:
            UserError: when another process is at work in it, or it cannot be made.
        """
        with locked(self.path):
            remove_leftovers(self.path)
            self._former.recover()
            try:
                yield
            except BaseException:
                self._former.restore()
                raise
            self._former.discard()

    def resumable(self, cfg: CfgNode, resume: str) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None for a fresh run.

        Args:
            cfg: this run's config.
            resume: ``auto`` (this folder's ``last.pth`` if there is one), ``never``, or a checkpoint's path.

        Raises:
            UserError: when the checkpoint is damaged, holds weights alone or belongs to another config, naming
                the keys that differ; and when a former run's checkpoints or results are here without ``last.pth``.
        """
        if resume == "never":
            return None
        if resume == "auto" and not self.last.exists():
            self._refuse_remains()
            return None
        path = self._source(resume)
        try:
            state = load_checkpoint(path)
        except UserError as error:
            raise UserError(f"{error}; {self._ways_out(path)}") from error
        lacking = [key for key in STATE if key not in state]
        if lacking:
            raise UserError(f"{path} holds weights alone, without {', '.join(lacking)}; {self._ways_out(path)}")
        differing = config_differences(read_tree(state["config"], str(path)), plain_tree(cfg))
        if differing:
            raise UserError(
                f"{path} belongs to a run with another config: {'; '.join(differing)}. Restore these settings, "
                "choose another OUTPUT_DIR.EXPERIMENT_NAME, or start afresh with --resume never"
            )
        return state

    def is_finished(self, state: dict[str, Any] | None, resume: str) -> bool:
        """Whether the run that ``state`` is from has nothing left to do here."""
        return state is not None and self._is_own(resume) and state["progress"]["finished"] and self.metrics.exists()

    def begin(self, cfg: CfgNode, state: dict[str, Any] | None, resume: str, inputs: dict[str, Any]) -> None:
        """Make the folder ready for a run, which starts or goes on from ``state``.

        A former run's files that are not this one's are set aside, and go with the first `save`.

        Args:
            cfg: its config.
            state, resume: as from and for `resumable`.
            inputs: the `fingerprint` of what it is made from, kept in its checkpoints.
        """
        self._inputs = inputs
        records = [] if state is None else read_history(self._source(resume).with_name(self.history.name))
        if state is not None and self._is_own(resume):
            self.metrics.unlink(missing_ok=True)  # of a run that had gone further
        else:
            self._replace_former(state)
        if state is not None:
            write_history(self.history, [record for record in records if record["epoch"] < state["progress"]["epoch"]])
        write_text(self.config, dump_config(cfg))

    def save(self, state: dict[str, Any], keep_as: int | None = None) -> None:
        """Write ``last.pth``: from then on the run counts, and a former one that it replaces is gone.

        With a number to be kept as, the same is written as ``epoch_NUMBER.pth``, which stays.
        """
        state = state | {"inputs": self._inputs}
        save_checkpoint(self.last, state)
        self._former.discard()
        if keep_as is not None:
            save_checkpoint(self.path / f"epoch_{keep_as}.pth", state)

    def _source(self, resume: str) -> Path:
        return self.last if resume in ("auto", "never") else user_path(resume, "--resume")

    def _is_own(self, resume: str) -> bool:
        return self._source(resume).resolve() == self.last.resolve()

    def _own_files(self) -> list[Path]:
        return [path for pattern in OWN_FILES for path in self.path.glob(pattern)]

    def _replace_former(self, state: dict[str, Any] | None) -> None:
        """Set aside what is not of a run that goes on from ``state``, which is another than ``last.pth``'s."""
        if state is None:
            self._former.set_aside(self._own_files())
            return
        epoch = state["progress"]["epoch"]
        best: dict[str, Any] = {}
        with suppress(UserError):  # none, or a damaged one
            best = load_checkpoint(self.best)
        kept = {self.tensorboard, *(self.path / f"epoch_{number}.pth" for number in range(1, epoch + 1))}
        self._former.set_aside([path for path in self._own_files() if path not in kept])
        if best.get("epoch", epoch) < epoch:
            save_checkpoint(self.best, best)

    def _refuse_remains(self) -> None:
        """Do not take a folder for empty that has lost its ``last.pth``."""
        found = [path.name for path in self._own_files() if path.name.startswith("epoch_") or path.name in RESULTS]
        if len(read_history(self.history)) > 1:  # a run that is killed in its first epoch leaves one at most
            found.append(self.history.name)
        if found:
            raise UserError(
                f"{self.path} holds {', '.join(sorted(found))} of a former run, but no {self.last.name}; "
                + self._ways_out(self.last)
            )

    def _ways_out(self, spoilt: Path) -> str:
        """What to do about a checkpoint that cannot be gone on with."""
        numbers = {int(path.stem.split("_")[1]) for path in self.path.glob("epoch_*.pth") if path.stem[6:].isdecimal()}
        others = [self.path / f"epoch_{number}.pth" for number in sorted(numbers, reverse=True)]
        usable = next((path for path in [self.last, *others] if path.exists() and path != spoilt), None)
        on = f"go on with --resume {usable}, or " if usable else ""
        return f"{on}start afresh with --resume never, which keeps what is here until the new run has a checkpoint"


def config_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``KEY: before → now`` for each key that differs and may not: one that either run computes with."""
    return [f"{key}: {old} → {new}" for key, old, new in differences(before, now) if key not in FREE_TO_CHANGE]
