"""``metrics.jsonl``: a line of JSON for each epoch of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d3still.files import write_text


def read_history(path: Path) -> list[dict[str, Any]]:
    """One record an epoch; a line that a kill cut short ends them, and a file that is not there holds none."""
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_history(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the whole history."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one epoch's line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
