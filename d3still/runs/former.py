"""A former run's files, set aside until the run that takes its place has a checkpoint of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

ASIDE, MOVING = ".former", ".former-moving"  # all of them; some of them still in the run's folder


class FormerRun:
    """Files of a run's folder that a new run replaces: moved into a folder within, back again if it fails.

    A kill at any moment loses none of them: `recover` finishes or undoes what it cut short.

    Args:
        folder: of the run.
        checkpoint: the name of the file whose presence says that the new run has started.
        early: the names of files that a run may write before that one.
    """

    def __init__(self, folder: Path, checkpoint: str, early: Sequence[str]) -> None:
        self._folder, self._checkpoint, self._early = folder, checkpoint, early
        self._aside, self._moving = folder / ASIDE, folder / MOVING

    def set_aside(self, paths: Iterable[Path]) -> None:
        """Take these files and folders out of the run's folder."""
        self._moving.mkdir()
        for path in paths:
            path.rename(self._moving / path.name)
        self._moving.rename(self._aside)

    def restore(self) -> None:
        """Put everything back, in place of what the run that failed has written; nothing if nothing is aside."""
        if self._aside.exists():
            for name in self._early:
                _remove(self._folder / name)
            self._aside.rename(self._moving)
        if self._moving.exists():
            for path in self._moving.iterdir():
                target = self._folder / path.name
                _remove(target)
                path.rename(target)
            self._moving.rmdir()

    def discard(self) -> None:
        """The new run has started: its predecessor goes."""
        _remove(self._aside)

    def recover(self) -> None:
        """After a kill: go on with the run that has a checkpoint."""
        if (self._folder / self._checkpoint).exists() and not self._moving.exists():
            self.discard()
        self.restore()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
