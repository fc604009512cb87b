"""Anyone's own images in a table: the columns path, identity, camera and split, or those of other tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset, camera_numbers
from d3still.data.datasets.table import TABLE_SUFFIXES, TRAIN, TableRow, read_table
from d3still.errors import UserError
from d3still.text import some

NAME = "csv"


@DATASETS.register(NAME)
def csv_file(root: Path, split: str = "test") -> RetrievalDataset:
    """Images that a table lists; ``root`` is the file or a folder that holds one.

    Paths are relative to the file. The split is train, query, gallery, test for query and gallery at once, or
    validation, which is what is tested where ``split`` asks for it or the table has nothing else to test. A camera
    may be a number, which is kept, or a name; where it is blank or the column is missing, the file is its own
    camera. `read_table` says what else is understood.

    Raises:
        UserError: names the file and line of what is wrong.
    """
    path = _find(root)
    rows = list(read_table(path))
    validation = [row for row in rows if row.is_validation]
    train = [row for row in rows if row.parts == (TRAIN,)]
    test = [row for row in rows if not row.is_validation and row.parts != (TRAIN,)] or validation
    hold_out = split == "val" and not validation
    tested = validation if split == "val" and validation else test
    dataset = RetrievalDataset.from_records(NAME, **_records(path, train + tested))
    return dataset.hold_out() if hold_out else dataset


def _records(path: Path, rows: Sequence[TableRow]) -> dict[str, list[Record]]:
    """The records of each part."""
    parts: dict[str, list[Record]] = {"train": [], "query": [], "gallery": []}
    lines: dict[tuple[str, str], int] = {}
    cameras = camera_numbers({row.camera for row in rows if row.camera})
    for row in rows:
        if not Path(row.path).is_file():
            raise UserError(f"{path} line {row.line}: there is no image {row.path}")
        for part in row.parts:
            before = lines.setdefault((part, row.path), row.line)
            if before != row.line:
                image = row.path.removeprefix(f"{path.parent}{os.sep}")
                raise UserError(f"{path} line {row.line}: {image} is in {part} already, by line {before}")
            parts[part].append(Record(row.path, row.identity, cameras.get(row.camera), row.box))
    for part, records in parts.items():
        if not records:
            raise UserError(f"{path}: no line has the split '{part}'")
    return parts


def _find(root: Path) -> Path:
    if not root.is_dir():
        return root
    entries = sorted(entry for entry in root.iterdir() if entry.name[0] != ".")
    tables = [entry for entry in entries if entry.suffix.lower() in TABLE_SUFFIXES]
    if len(tables) != 1:
        what = f"several CSV files ({some(table.name for table in tables)})" if tables else "no CSV file"
        raise UserError(f"csv: {root} holds {what}; set DATASETS.ROOT_DIR to the file itself")
    return tables[0]
