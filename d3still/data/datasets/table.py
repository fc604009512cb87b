"""Tables of images as people and other tools write them, row by row."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from d3still.data.datasets.base import Box
from d3still.data.datasets.files import read_bytes
from d3still.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv")
PATH, IDENTITY, CAMERA, SPLIT = "path", "identity", "camera", "split"
#: A column's own name, then what other tools call it.
ALIASES = {
    PATH: ("image_path", "img_path", "file_path", "filepath", "filename", "file_name", "image", "img", "file"),
    IDENTITY: ("label", "pid", "person_id", "vehicle_id", "item_id", "product_id", "class_id", "class"),
    CAMERA: ("camera_id", "cam_id", "camid", "cam"),
    SPLIT: ("subset", "partition", "part", "set"),
    "is_query": (),
    "is_gallery": (),
    "left": ("x_1", "x1", "xmin", "x_min"),
    "top": ("y_1", "y1", "ymin", "y_min"),
    "right": ("x_2", "x2", "xmax", "x_max"),
    "bottom": ("y_2", "y2", "ymax", "y_max"),
}
TRAIN, QUERY, GALLERY = "train", "query", "gallery"
VALIDATIONS = ("validation", "val")
#: What a split may be called → the parts that its images belong to.
SPLITS = {
    "train": (TRAIN,),
    "query": (QUERY,),
    "gallery": (GALLERY,),
    **dict.fromkeys(("test", *VALIDATIONS), (QUERY, GALLERY)),
}
_BOX = ("left", "top", "right", "bottom")
_BLANK, _YES, _NO = ("", "nan", "none", "null"), ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


class TableRow(NamedTuple):
    """An image of a table.

    Attributes:
        line: where it stands, from 1.
        path: of the file, relative ones taken from the table's folder.
        identity: as written; "" where the table may leave it out.
        camera: as written, or "".
        parts: train, query, gallery, or both of the latter; () where the table has no split.
        is_validation: whether they are those of the validation.
        box: the part of the image to use, if not all.
    """

    line: int
    path: str
    identity: str
    camera: str
    parts: tuple[str, ...]
    is_validation: bool
    box: Box | None


def read_table(path: Path, required: Sequence[str] = (PATH, IDENTITY, SPLIT)) -> Iterator[TableRow]:
    """The rows of a table that are not blank.

    Separators are commas, semicolons or tabs, the text UTF-8 or, with its mark, UTF-16; columns may have the names
    of `ALIASES`, in any case and order. Backslashes in paths count as slashes where no file has them in its name.

    Args:
        path: of the table.
        required: columns that must be there and are never blank.

    Raises:
        UserError: names the file and line of what is wrong.
    """
    text = _decoded(path)
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        columns = _columns(path, names, required)
        for values in reader:
            stripped = [value.strip() for value in values]
            if any(stripped):
                if len(values) > len(names):
                    raise UserError(f"{path} line {reader.line_num}: {len(values)} values for {len(names)} columns")
                cells = {own: stripped[at] if at < len(stripped) else "" for own, at in columns.items()}
                yield _row(path, reader.line_num, cells, required)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from error


def _decoded(path: Path) -> str:
    content = read_bytes(path)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what spreadsheets call Unicode text
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it so") from error


def _columns(path: Path, names: Sequence[str], required: Sequence[str]) -> dict[str, int]:
    """Own name of a column → its place."""
    columns = {}
    for own, others in ALIASES.items():
        found = [own] if own in names else [other for other in others if other in names]
        twice = [name for name in found if names.count(name) > 1]
        if len(found) > 1 or twice:
            listed = " and ".join(found) if len(found) > 1 else f"two columns {twice[0]}"
            raise UserError(f"{path} line 1: {listed} may each be the {own}; call one of them '{own}'")
        if found:
            columns[own] = names.index(found[0])
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(
            f"{path} line 1: no column {', '.join(missing)}; the columns are path, identity, camera (optional) and "
            "split, separated by commas, semicolons or tabs"
        )
    return columns


def _row(path: Path, line: int, cells: dict[str, str], required: Sequence[str]) -> TableRow:
    where = f"{path} line {line}"
    for name in required:
        if not cells[name]:
            raise UserError(f"{where}: the {name} is blank")
    return TableRow(
        line,
        _image(path.parent, cells[PATH]),
        cells.get(IDENTITY, ""),
        cells.get(CAMERA, ""),
        _parts(where, cells),
        cells.get(SPLIT, "").lower() in VALIDATIONS,
        _box(where, cells),
    )


def _image(folder: Path, text: str) -> str:
    image = folder / text
    if "\\" in text and not image.exists():
        return str(folder / text.replace("\\", "/"))
    return str(image)


def _parts(where: str, cells: dict[str, str]) -> tuple[str, ...]:
    split = cells.get(SPLIT, "").lower()
    if not split:
        return ()
    if split not in SPLITS:
        raise UserError(f"{where}: split '{cells[SPLIT]}' is none of {', '.join(SPLITS)}")
    parts = SPLITS[split]
    if parts == (TRAIN,) or not {"is_query", "is_gallery"} & cells.keys():
        return parts
    flagged = tuple(part for part in (QUERY, GALLERY) if _flag(where, f"is_{part}", cells))
    if not flagged:
        raise UserError(f"{where}: an image of split '{cells[SPLIT]}' is neither is_query nor is_gallery")
    return flagged


def _flag(where: str, name: str, cells: dict[str, str]) -> bool:
    value = cells.get(name, "").lower()
    if value not in (*_BLANK, *_YES, *_NO):
        raise UserError(f"{where}: {name} is '{cells[name]}', neither True nor False")
    return value in _YES


def _box(where: str, cells: dict[str, str]) -> Box | None:
    values = [cells.get(name, "") for name in _BOX]
    if all(value.lower() in _BLANK for value in values):
        return None
    try:
        left, top, right, bottom = (int(float(value)) for value in values)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: the box {', '.join(values)} is not left, top, right, bottom in pixels") from None
    if left >= right or top >= bottom:
        raise UserError(f"{where}: the box {left}, {top}, {right}, {bottom} (left, top, right, bottom) is empty")
    return left, top, right, bottom
