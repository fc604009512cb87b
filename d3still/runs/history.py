"""``metrics.jsonl``: a line of JSON for each epoch of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d3still.errors import UserError
from d3still.files import require_regular, write_text

logger = logging.getLogger(__name__)

LAST_EPOCH = 10**9  # what is larger is no epoch's number


def read_history(path: Path) -> list[dict[str, Any]]:
    """One record an epoch; none where there is no file.

    The first line that is no record, such as one that a kill cut short, ends them, and a warning says so.

    Raises:
        UserError: when the file cannot be opened.
    """
    try:
        require_regular(path)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct its permissions") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            logger.warning("%s line %d is no record of an epoch; the history ends before it", path, number)
            break
        records.append(record)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or no text at all
        return None
    epoch = record.get("epoch") if isinstance(record, dict) else None
    return record if isinstance(epoch, int) and 0 <= epoch <= LAST_EPOCH else None


def write_history(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the whole history."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one epoch's line.

    Raises:
        UserError: when it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space and start the command again: "
            "it goes on from the last checkpoint"
        ) from error
