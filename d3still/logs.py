"""Log records on their way to a run's ``log.txt``, and progress bars."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from d3still.errors import UserError
from d3still.text import VisibleFormatter

PACKAGE = "d3still"  # the logger of all that this package says
LOG_FORMAT = "%(asctime)s %(message)s"
KEPT = 10_000  # records
BAR_SECONDS_TERMINAL, BAR_SECONDS_FILE = 0.5, 30.0  # between two drawings of a progress bar

logger = logging.getLogger(__name__)


class EarlyRecords(MemoryHandler):
    """Keeps what is logged before the run's folder is ready: how the config was read, weights that were left out."""

    def __init__(self) -> None:
        super().__init__(KEPT)
        self.buffer = deque(maxlen=KEPT)  # the last ones, however long there is no file to hand them to


class LogFile(logging.FileHandler):
    """``log.txt``. A full disk costs its lines, and not the run: one warning on the console, and training goes on.

    Raises:
        UserError: when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; free some space or write elsewhere") from error
        self.setFormatter(VisibleFormatter(LOG_FORMAT))
        self._lost = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that lines are lost."""
        if not self._lost:
            self._lost = True
            logger.warning("%s cannot be written any more; training goes on without it", self.baseFilename)

    def close(self) -> None:
        """Write what is pending, if there is room."""
        with suppress(OSError):
            super().close()


@contextmanager
def console() -> Iterator[None]:
    """What the package logs goes to the console, a line of visible text each."""
    root, handler = logging.getLogger(PACKAGE), logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter())
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def early_records() -> Iterator[None]:
    """Keep records for the log file to come, unless somebody further out does so already."""
    root = logging.getLogger(PACKAGE)
    keeper = None if _keeper() else EarlyRecords()
    if keeper:
        root.addHandler(keeper)
    try:
        yield
    finally:
        if keeper:
            root.removeHandler(keeper)


@contextmanager
def log_file(path: Path) -> Iterator[LogFile]:
    """Log to a file, beginning with what was kept for it."""
    root, keeper, file = logging.getLogger(PACKAGE), _keeper(), LogFile(path)
    if keeper:
        root.removeHandler(keeper)
        keeper.setTarget(file)
        keeper.flush()
        keeper.setTarget(None)
    root.addHandler(file)
    try:
        yield file
    finally:
        root.removeHandler(file)
        file.close()
        if keeper:
            root.addHandler(keeper)


def _keeper() -> EarlyRecords | None:
    handlers = logging.getLogger(PACKAGE).handlers
    return next((handler for handler in handlers if isinstance(handler, EarlyRecords)), None)


def progress_bar(total: int, initial: int, description: str, unit: str, enabled: bool, leave: bool = False) -> tqdm:
    """A bar over a long piece of work, left on the screen or not; drawn rarely where the output is no terminal."""
    interval = BAR_SECONDS_TERMINAL if sys.stderr.isatty() else BAR_SECONDS_FILE
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not enabled,
        mininterval=interval,
        dynamic_ncols=True,
        leave=leave,
    )
