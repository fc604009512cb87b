"""What every command begins with: the repository on the import path, and one way to end in an error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d3still.errors import UserError
from d3still.logs import PACKAGE, console, early_records
from d3still.text import visible

USER_ERROR, INTERRUPTED, CLOSED_PIPE = 2, 130, 141  # exit statuses


def run(main: Callable[[], object]) -> None:
    """Run a command, which may return an exit status; what its user can put right ends in one line and status 2."""
    try:
        try:
            with _console(), early_records():
                status = main()
        finally:
            sys.stdout.flush()
        if isinstance(status, int):
            sys.exit(status)
    except UserError as error:
        print(f"error: {visible(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except BrokenPipeError:  # who reads what is printed has seen enough, as head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        print(f"error: {visible(error.filename)}: {visible(error.strerror)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def speaks() -> bool:
    """Whether this process prints results: of several ranks one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _console() -> Iterator[None]:
    """What the package logs goes to the console from the first line on: how a config is read, too.

    Of several ranks only the first speaks.
    """
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.INFO if speaks() else logging.ERROR)
    try:
        with console():
            yield
    finally:
        logger.setLevel(level)
