"""What a run tells while it runs: log file, progress bar, TensorBoard."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from d3still.engine.retrieval import Evaluation
from d3still.errors import UserError
from d3still.logs import PACKAGE, console, early_records, log_file

logger = logging.getLogger(__name__)

EXAMPLES = 8  # pairs shown in TensorBoard


@contextmanager
def logging_to(path: Path | None, quiet: bool = False) -> Iterator[None]:
    """Log to the console and, where ``path`` is given, to a file, also the error that ends the run.

    ``quiet`` leaves errors only, for ranks whose messages would repeat those of rank 0.
    """
    root = logging.getLogger(PACKAGE)
    root.setLevel(logging.ERROR if quiet else logging.INFO)
    with ExitStack() as stack:
        if not root.handlers:
            stack.enter_context(console())
        stack.enter_context(early_records())
        file = None if path is None else stack.enter_context(log_file(path))
        stack.enter_context(logging_redirect_tqdm([root]))
        try:
            yield
        except Exception as error:
            if file is not None:  # the console gets it from whoever catches it
                known = isinstance(error, UserError)
                text, trace = (str(error), None) if known else ("stopped by an error", sys.exc_info())
                file.handle(root.makeRecord(root.name, logging.ERROR, __file__, 0, text, (), trace))
            raise


class Board:
    """TensorBoard events of a run; does nothing on ranks that write nothing.

    ``train/`` curves count steps over all epochs, the others epochs.

    Args:
        folder: of the event files; None writes nothing.
        purge_step: the next step's number: TensorBoard forgets points from there on, which come again. It is
            above the number of any finished epoch, so none of these is forgotten.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None) -> None:
        writes = folder is not None
        suffix = f".{time.time_ns()}"  # the writer's own names tell seconds: a run resumed at once would begin anew
        try:
            self._writer = SummaryWriter(
                str(folder), purge_step=purge_step, filename_suffix=suffix, write_to_disk=writes
            )
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; free some space") from error
        if writes:
            _forgive(self._writer.file_writer.event_writer._ev_writer, folder)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One point a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def optimizer_report(self, report: dict[str, Any]) -> None:
        """RAHO's groups as a note and its scores as bars: one step a scored block. Nothing for other builders."""
        if not report:
            return
        lines = [
            f"- {tier.replace('_', ' ')}: {', '.join(blocks) or 'none'}" for tier, blocks in report["groups"].items()
        ]
        self._writer.add_text("raho/groups", "\n".join(lines))
        for number, (block, scores) in enumerate(report["scores"].items()):
            for view, score in scores.items():
                self._writer.add_scalar(f"raho/{view}", score, number)
            self._writer.add_text("raho/blocks", f"{number}: {block}", number)

    def pair_images(self, low: Tensor, high: Tensor) -> None:
        """The two views X^l and X^h of a few images, uint8 (B, 3, H, W)."""
        self._writer.add_images("pairs/low_resolution", low[:EXAMPLES].numpy(), 0)
        self._writer.add_images("pairs/high_resolution", high[:EXAMPLES].numpy(), 0)

    def hardest_queries(self, evaluation: Evaluation, step: int) -> None:
        """Ranked lists of the queries of lowest AP, one picture each for AIR and SIR."""
        for name, picture in evaluation.hardest.items():
            self._writer.add_image(f"{name}/hardest_queries", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


def _forgive(events: Any, folder: Path) -> None:
    """A full disk costs curves, and not the run: one warning, and training goes on.

    tensorboardX writes in a thread of its own. An error ends that thread, and then the next events wait for it
    without end.
    """
    told = False

    def forgiving(write: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any) -> Any:
            nonlocal told
            try:
                return write(*arguments)
            except OSError as error:
                if not told:
                    logger.warning("curves in %s are lost (%s); training goes on", folder, error.strerror)
                told = True

        return method

    for name in ("write_event", "flush", "close"):
        setattr(events, name, forgiving(getattr(events, name)))
