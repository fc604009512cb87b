"""Whether a dataset on disk is what it should be: counts, identities, cameras, and every file opened."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw
from tqdm import tqdm

from d3still.data.datasets import DATASETS, JUNK_IDENTITY, RetrievalDataset, Sample
from d3still.data.image import MAX_PIXELS, ImageError, read_image
from d3still.data.sources import usable_cores
from d3still.data.transforms import resize_within
from d3still.files import write_atomically
from d3still.text import visible

T = TypeVar("T")
SHORT_NAMES = {"veri": "VeRi776", "msmt": "MSMT17", "cub": "CUB200", "inshop": "InShop", "sop": "SOP"}
FAST_SAMPLE = 500  # files that a fast check opens
LISTED = 10  # unreadable files that are shown by name
SHEET_ROWS, SHEET_COLUMNS, THUMB = 4, 8, 96  # rows a part, images a row, pixels
_CAPTION, _GREY, _BLACK = 14, (128, 128, 128), (0, 0, 0)


@dataclass
class Check:
    """What was found: ``lines`` to show, and the ``problems`` among them."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def full_name(name: str) -> str:
    """The registered name for a short one, in any case; an unknown one is returned as it is."""
    short = SHORT_NAMES.get(name.lower())
    return short or next((known for known in DATASETS if known.lower() == name.lower()), name)


def check_dataset(dataset: RetrievalDataset, *, fast: bool = False, max_pixels: int = MAX_PIXELS) -> Check:
    """Compares counts with the published ones and opens every file, or a sample with ``fast``.

    Damage is reported, not raised; so are images of more than ``max_pixels``.
    """
    check = Check(problems=list(dataset.notes))
    check.lines += _count_lines(dataset)
    check.lines += _identity_lines(dataset, check)
    samples = list({s.path: s for s in dataset.train + dataset.query + dataset.gallery}.values())
    opened = samples[:: -(-len(samples) // FAST_SAMPLE)] if fast else samples
    unreadable, sizes = _open_all(opened, max_pixels)
    check.lines.append(f"{'files opened':<22}{len(opened):>9,}   of {len(samples):,}")
    if sizes:
        check.lines.append(f"{'image sizes':<22}{_size_range(sizes)}")
    check.lines.append(f"{'unreadable':<22}{len(unreadable):>9,}")
    check.problems += unreadable[:LISTED]
    if len(unreadable) > LISTED:
        check.problems.append(f"… and {len(unreadable) - LISTED:,} more that cannot be read")
    return check


def contact_sheet(dataset: RetrievalDataset, path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Saves a picture: rows of training identities, then queries each followed by its gallery images.

    Images that cannot be read, also for their more than ``max_pixels``, are grey.

    Raises:
        UserError: when it cannot be written.
    """
    train, query, gallery = map(_by_identity, (dataset.train, dataset.query, dataset.gallery))
    rows = [
        (f"train: identity {train[label][0].name} (label {label})", train[label])
        for label in _spread(sorted(train), SHEET_ROWS)
    ]
    matched = sorted(query.keys() & gallery.keys() - {JUNK_IDENTITY})
    for identity in _spread(matched, SHEET_ROWS):
        first = query[identity][0]
        others = [sample for sample in gallery[identity] if sample.path != first.path]
        rows.append((f"query, gallery: identity {first.name}", [first, *others]))
    cell = THUMB + _CAPTION
    sheet = Image.new("RGB", (SHEET_COLUMNS * THUMB, max(1, len(rows)) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (caption, samples) in enumerate(rows):
        draw.text((2, row * cell), visible(caption), fill=_BLACK)
        for column, sample in enumerate(_spread(samples, SHEET_COLUMNS)):
            sheet.paste(_thumb(sample, max_pixels), (column * THUMB, row * cell + _CAPTION))
    write_atomically(path, lambda file: sheet.save(file, "PNG"))


def _count_lines(dataset: RetrievalDataset) -> list[str]:
    lines = []
    for what, count in dataset.counts().items():
        published = dataset.published.get(what, ())
        expected = " or ".join(f"{value:,}" for value in published)
        verdict = "" if not published else "ok  " if count in published else "DIFFERS  "
        lines.append(f"{what:<22}{count:>9,}   {verdict}{f'published {expected}' if expected else ''}".rstrip())
    return lines


def _identity_lines(dataset: RetrievalDataset, check: Check) -> list[str]:
    lines = []
    for part, samples in (("train", dataset.train), ("gallery", dataset.gallery)):
        counts = sorted(Counter(s.identity for s in samples if s.identity != JUNK_IDENTITY).values())
        if counts:
            middle = statistics.median(counts)
            spread = f"{counts[0]:,} to {counts[-1]:,}, median {middle:g}"
            lines.append(f"{'images an identity':<22}{spread} ({part})")
    seen = {(s.identity, s.camera) for s in dataset.gallery}
    cameras = Counter(identity for identity, _ in seen)
    lonely = sum(cameras[s.identity] - ((s.identity, s.camera) in seen) == 0 for s in dataset.query)
    lines.append(f"{'queries without match':<22}{lonely:>9,}   in another camera")
    if lonely == len(dataset.query):
        check.problems.append(
            "no query has a match in another camera; if all data is from one camera, set "
            "TEST.EXCLUDE_SAME_CAMERA: False"
        )
    return lines


def _open_all(samples: Sequence[Sample], max_pixels: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Errors of the files that cannot be read, and (width, height) of those that can."""

    def open_one(sample: Sample) -> str | tuple[int, int]:
        try:
            height, width = read_image(sample.path, sample.box, max_pixels).shape[1:]
            return width, height
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        results = list(tqdm(pool.map(open_one, samples), total=len(samples), unit="image", disable=None))
    return [r for r in results if isinstance(r, str)], [r for r in results if not isinstance(r, str)]


def _size_range(sizes: Sequence[tuple[int, int]]) -> str:
    smallest, largest = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    return f"{smallest[0]} × {smallest[1]} to {largest[0]} × {largest[1]}, {len(set(sizes)):,} different"


def _by_identity(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.identity, []).append(sample)
    return groups


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced, the first among them."""
    step = -(-len(items) // count) if items else 1
    return list(items[::step])


def _thumb(sample: Sample, max_pixels: int) -> Image.Image:
    try:
        image = read_image(sample.path, sample.box, max_pixels)
    except ImageError:
        return Image.new("RGB", (THUMB, THUMB), _GREY)
    return Image.fromarray(resize_within(image, THUMB).permute(1, 2, 0).contiguous().numpy())
