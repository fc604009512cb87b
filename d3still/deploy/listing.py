"""Which images a gallery consists of: a folder's, a table's, or a list's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from d3still.data import RetrievalDataset, Sample, build_dataset
from d3still.data.datasets.base import JUNK_IDENTITY, Box
from d3still.data.datasets.files import require_images
from d3still.data.datasets.table import GALLERY, PATH, TABLE_SUFFIXES, read_table
from d3still.deploy.network_files import Description
from d3still.errors import UserError
from d3still.files import user_path
from d3still.text import visible

GALLERY_SPLITS = ("gallery", "test")  # rows of a table with a column split that belong to the gallery

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds of a file."""
UNKNOWN: Stamp = (-1, -1)


class GalleryImage(NamedTuple):
    """One image of a gallery.

    Attributes:
        path: absolute.
        identity: what the user calls that which it shows, where that is known.
        box: the part to use (left, top, right, bottom), if not all.
        camera: that took it, where that is known.
    """

    path: str
    identity: str | None = None
    box: Box | None = None
    camera: str | None = None


def list_images(images: str | Path | Iterable[Any]) -> list[GalleryImage]:
    """The images of a gallery.

    Args:
        images: a folder, searched with all below it, in the order of paths; a CSV file with a column
            ``path``, relative to it, and perhaps ``identity``, ``camera`` and ``split`` (rows other than gallery
            and test are left out); or paths, `GalleryImage` or `Sample`, in their own order.

    Raises:
        UserError: nothing is there, the table is not one, or an image is listed twice.
    """
    if isinstance(images, str | Path):
        listed = _of_path(Path(absolute(images)))
    else:
        listed = [_of_item(item) for item in images]
        if not listed:
            raise UserError("there is no image to index")
    seen: set[tuple[str, Box | None]] = set()
    source = images if isinstance(images, str | Path) else "the list"
    for image in listed:
        if (image.path, image.box) in seen:
            raise UserError(f"{source}: {image.path} is listed twice")
        seen.add((image.path, image.box))
    return listed


def shown(path: str) -> str:
    """A path as short as it can be said from the current folder, in printable characters."""
    here = Path.cwd()
    return visible(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)


def run_dataset(description: Description) -> RetrievalDataset:
    """The dataset that a network's run was tested on.

    Raises:
        UserError: it is not where the run's config says, or the config is only a part, which names none.
    """
    try:
        names, root, split, pattern = (
            description.config["DATASETS"][key] for key in ("NAMES", "ROOT_DIR", "SPLIT", "CAMERA_PATTERN")
        )
    except KeyError as error:
        raise UserError(
            f"which dataset the {description} was trained on is not known; name the images (--images, --calibration)"
        ) from error
    return build_dataset(names, root, split=split, camera_pattern=pattern)


def _of_path(source: Path) -> list[GalleryImage]:
    if source.is_dir():
        return [GalleryImage(path) for path in require_images("index", source, "the gallery's images")]
    if not source.exists():
        raise UserError(f"{source}: no such folder or table; --images takes a folder of images or a CSV file")
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise UserError(f"{source}: is neither a folder nor a .csv file; --images takes one of these")
    listed = _of_table(source)
    if not listed:
        raise UserError(f"{source}: lists no image (of a table with a column split, only {GALLERY_SPLITS} count)")
    return listed


def _of_table(source: Path) -> list[GalleryImage]:
    listed = [row for row in read_table(source, required=(PATH,)) if not row.parts or GALLERY in row.parts]
    tested = [row for row in listed if not row.is_validation] or listed
    paths = [absolute(row.path, f"{source}: the image") for row in tested]
    rows = zip(paths, tested, strict=True)
    return [GalleryImage(path, row.identity or None, row.box, row.camera or None) for path, row in rows]


def _of_item(item: Any) -> GalleryImage:
    if isinstance(item, GalleryImage):
        return item._replace(path=absolute(item.path))
    if isinstance(item, Sample):
        junk = item.identity == JUNK_IDENTITY
        return GalleryImage(absolute(item.path), None if junk else item.name, item.box, str(item.camera))
    if isinstance(item, str | Path):
        return GalleryImage(absolute(item))
    raise UserError(f"a gallery is made of image files, not of {type(item).__name__}")


def stamps_of(images: Iterable[GalleryImage]) -> dict[GalleryImage, Stamp]:
    """Each image with the size and time of change of its file, `UNKNOWN` where that is missing."""
    return {image: stamp_of(image.path) for image in images}


def stamp_of(path: str) -> Stamp:
    """Size and time of change of a file, `UNKNOWN` where it is missing."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a million of them)
    except OSError:
        return UNKNOWN
    return status.st_size, status.st_mtime_ns


def absolute(path: str | Path, what: str = "") -> str:
    """A path from the root on; links stay as they are. For ``what``, and errors, see `d3still.files.user_path`."""
    return os.path.abspath(user_path(path, what))  # noqa: PTH100  (resolve() would follow links)
