"""Anyone's own images in a table: a CSV file with the columns path, identity, camera and split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from d3still.data.datasets.base import DATASETS, Record, RetrievalDataset
from d3still.data.datasets.files import some
from d3still.errors import UserError

NAME = "csv"
REQUIRED = ("path", "identity", "split")
SPLITS = {"train": ("train",), "query": ("query",), "gallery": ("gallery",), "test": ("query", "gallery")}


@DATASETS.register(NAME)
def csv_file(root: Path) -> RetrievalDataset:
    """Images that a CSV file lists; ``root`` is the file or a folder that holds one.

    Paths are relative to the file. The split is train, query, gallery, or test for query and gallery at
    once. A camera may be a number, which is kept, or a name; where it is blank or the column is missing,
    the file is its own camera. Separators are commas or semicolons.

    Raises:
        UserError: names the file and line of what is wrong.
    """
    path = _find(root)
    parts: dict[str, list[Record]] = {"train": [], "query": [], "gallery": []}
    lines: dict[tuple[str, str], int] = {}
    rows = list(_rows(path))
    cameras = _cameras({row["camera"] for _, row in rows if row["camera"]})
    for line, row in rows:
        image = str(path.parent / row["path"])
        if not Path(image).is_file():
            raise UserError(f"{path} line {line}: there is no image {image}")
        for part in SPLITS[row["split"]]:
            before = lines.setdefault((part, image), line)
            if before != line:
                raise UserError(f"{path} line {line}: {row['path']} is in {part} already, by line {before}")
            parts[part].append(Record(image, row["identity"], cameras.get(row["camera"])))
    for part, records in parts.items():
        if not records:
            raise UserError(f"{path}: no line has the split '{part}'")
    return RetrievalDataset.from_records(NAME, **parts)


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    tables = sorted(entry for entry in root.iterdir() if entry.suffix.lower() == ".csv" and entry.name[0] != ".")
    if len(tables) != 1:
        what = f"several CSV files ({some(table.name for table in tables)})" if tables else "no CSV file"
        raise UserError(f"csv: {root} holds {what}; set DATASETS.ROOT_DIR to the file itself")
    return tables[0]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → stripped value) of each row that is not blank."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it so") from error
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in header else ",")
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise UserError(
                f"{path} line 1: no column {', '.join(missing)}; the columns are path, identity, "
                "camera (optional) and split"
            )
        for values in reader:
            stripped = [value.strip() for value in values]
            if any(stripped):
                yield reader.line_num, _row(path, reader.line_num, columns, stripped)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from error


def _row(path: Path, line: int, columns: list[str], values: list[str]) -> dict[str, str]:
    if len(values) > len(columns):
        raise UserError(f"{path} line {line}: {len(values)} values for {len(columns)} columns")
    row = {"camera": ""} | dict(zip(columns, values, strict=False))
    for name in REQUIRED:
        if not row.get(name):
            raise UserError(f"{path} line {line}: the {name} is blank")
    row["split"] = row["split"].lower()
    if row["split"] not in SPLITS:
        raise UserError(f"{path} line {line}: split '{row['split']}' is none of {', '.join(SPLITS)}")
    return row


def _cameras(values: set[str]) -> dict[str, int]:
    if all(value.isdecimal() for value in values):
        return {value: int(value) for value in values}
    return {value: place for place, value in enumerate(sorted(values))}
