"""What a dataset is: three lists of samples, and the registry that configs choose from."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from d3still.errors import UserError
from d3still.registry import Registry

DATASETS = Registry("dataset", "DATASETS.NAMES")
"""Dataset functions by name. A registered function is called as ``function(root: Path, ...)`` and returns
a `RetrievalDataset`; it may also take ``split`` and ``camera_pattern``, each by that name, if it uses them.
"""

JUNK_IDENTITY = -1
"""Gallery images of this identity are distractors that count neither as hit nor as miss."""


_LAST_CAMERA = 10**18  # an int64 holds it, and those of files that are their own camera after it
_HELD_OUT = 7  # one training identity in so many is held out; of the emoji set, 100 of 700


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Sample:
    """One image of a dataset; equal ones are so whatever their identity is called.

    Attributes:
        path: of the file.
        identity: its number; in training the label.
        camera: its number, from 0.
        box: the part to use (left, top, right, bottom, in pixels of the upright image), if not all.
        name: what the dataset calls the identity: a folder's name, a table's entry; its number where it has no name.
    """

    path: str
    identity: int
    camera: int
    box: Box | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.identity))


class Record(NamedTuple):
    """One image as a dataset describes it: any identity name, and no camera where it is its own."""

    path: str
    identity: str | int
    camera: int | None = None
    box: Box | None = None


@dataclass
class RetrievalDataset:
    """The images of a dataset, sorted by path.

    Attributes:
        name: the registered name.
        train: training images; their identities are labels 0 … `num_classes` − 1.
        query: query images, identities as the dataset numbers them.
        gallery: gallery images, likewise; identity −1 is junk.
        identity_map: original training identity → label.
        notes: what differs from the published dataset, one sentence each.
        published: for a benchmark, the numbers its authors give: what is counted → the values in use.
    """

    name: str
    train: list[Sample]
    query: list[Sample]
    gallery: list[Sample]
    identity_map: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    published: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of training identities."""
        return len(self.identity_map)

    @property
    def identity_names(self) -> dict[int, str]:
        """The tested identities' numbers → what the dataset calls them."""
        return {sample.identity: sample.name for sample in self.query + self.gallery}

    def counts(self) -> dict[str, int]:
        """Images and identities of each part, and cameras of query and gallery together."""
        tested = self.query + self.gallery
        return {
            "train images": len(self.train),
            "train identities": self.num_classes,
            "query images": len(self.query),
            "query identities": len({sample.identity for sample in self.query}),
            "gallery images": len(self.gallery),
            "gallery identities": len({s.identity for s in self.gallery if s.identity != JUNK_IDENTITY}),
            "cameras": len({sample.camera for sample in tested}),
        }

    def compare_with_published(self, published: dict[str, tuple[int, ...]]) -> None:
        """Keep the published numbers and note each count that is none of them."""
        self.published = published
        counts = self.counts()
        for what, values in published.items():
            if counts[what] not in values:
                expected = " or ".join(f"{value:,}" for value in values)
                self.notes.append(f"{counts[what]:,} {what}, published: {expected}")

    def hold_out(self) -> RetrievalDataset:
        """The training part alone, every seventh of its identities held out to validate settings with.

        A held-out image is query and gallery at once, with the cameras it has; where no held-out identity was seen by
        two, each file is its own.

        Raises:
            UserError: there are fewer than seven training identities.
        """
        if self.num_classes < _HELD_OUT:
            raise UserError(
                f"{self.name}: DATASETS.SPLIT 'val' holds out every {_HELD_OUT}th training identity, "
                f"but there are {self.num_classes}"
            )
        kept, held = [], []
        for sample in self.train:
            record = Record(sample.path, sample.name, sample.camera, sample.box)
            (held if sample.identity % _HELD_OUT == _HELD_OUT - 1 else kept).append(record)
        seen = {(record.identity, record.camera) for record in held}
        crossed = len(seen) > len({identity for identity, _ in seen})
        tested = held if crossed else [record._replace(camera=None) for record in held]
        dataset = RetrievalDataset.from_records(self.name, kept, tested, tested)
        dataset.notes = list(self.notes)
        return dataset

    @classmethod
    def from_records(
        cls, name: str, train: Iterable[Record], query: Iterable[Record], gallery: Iterable[Record]
    ) -> RetrievalDataset:
        """Sort the images, relabel the training identities from 0 and number what has only a name.

        Raises:
            UserError: a part is empty, an image is listed twice, or a training identity is negative.
        """
        train, query, gallery = (
            _sorted_unique(name, part, records)
            for part, records in (("train", train), ("query", query), ("gallery", gallery))
        )
        labels = {str(identity): label for label, identity in enumerate(_in_order(train))}
        if str(JUNK_IDENTITY) in labels:
            raise UserError(
                f"{name}: training image {_first_junk(train)} has the junk identity "
                f"{JUNK_IDENTITY}, which only gallery images may have"
            )
        tested = _samples(query + gallery, _numbers(_in_order(query + gallery)))
        return cls(name, _samples(train, labels), tested[: len(query)], tested[len(query) :], labels)


def _sorted_unique(name: str, part: str, records: Iterable[Record]) -> list[Record]:
    ordered = sorted(records, key=lambda record: record.path.replace(os.sep, "/"))
    if not ordered:
        raise UserError(f"{name}: the {part} part holds no image")
    for before, after in itertools.pairwise(ordered):
        if before.path == after.path:
            raise UserError(f"{name}: {after.path} is listed twice in the {part} part")
    return ordered


def _in_order(records: Iterable[Record]) -> list[str | int]:
    """Distinct identities: by number where all are numbers, else by name."""
    identities = {record.identity for record in records}
    if all(_is_number(identity) for identity in identities):
        return sorted({int(identity) for identity in identities})
    return sorted({str(identity) for identity in identities})


def _is_number(identity: str | int) -> bool:
    """Whether it is one that an int64 holds; longer ones, such as bar codes, are names."""
    return re.fullmatch(r"-?[0-9]{1,18}", str(identity)) is not None


def camera_numbers(values: set[str]) -> dict[str, int]:
    """Cameras as files name them → their numbers: their own where all are numbers, else their places by name."""
    if all(re.fullmatch("[0-9]{1,18}", value) for value in values):  # more digits than an int64 holds are a name
        return {value: int(value) for value in values}
    return {value: place for place, value in enumerate(sorted(values))}


def _numbers(identities: Sequence[str | int]) -> dict[str, int]:
    """Each identity's number: its own, or its place among the names; −1 stays junk in either case."""
    if all(isinstance(identity, int) for identity in identities):
        return {str(identity): int(identity) for identity in identities}
    named = [str(identity) for identity in identities if str(identity) != str(JUNK_IDENTITY)]
    return {str(JUNK_IDENTITY): JUNK_IDENTITY} | {identity: number for number, identity in enumerate(named)}


def _own_cameras(records: Sequence[Record]) -> dict[str, int]:
    """A camera for each file that has none, after those in use; the same for query and gallery."""
    given = ((record.camera, record.path) for record in records if record.camera is not None)
    last, where = max(given, default=(-1, ""))
    if last > _LAST_CAMERA:
        raise UserError(f"camera {last} of {where} is no number that a camera can have; correct the name")
    first = last + 1
    alone = sorted({record.path for record in records if record.camera is None})
    return {path: camera for camera, path in enumerate(alone, start=first)}


def _samples(records: Sequence[Record], numbers: dict[str, int]) -> list[Sample]:
    """The records as samples; a number's name is as the first of its images spells it: "0700" rather than 700."""
    identities, cameras = [_number(record, numbers) for record in records], _own_cameras(records)
    names = {number: str(record.identity) for record, number in reversed([*zip(records, identities, strict=True)])}
    return [
        Sample(r.path, number, cameras[r.path] if r.camera is None else r.camera, r.box, names[number])
        for r, number in zip(records, identities, strict=True)
    ]


def _number(record: Record, numbers: dict[str, int]) -> int:
    text = str(record.identity)
    return numbers[text] if text in numbers else numbers[str(int(record.identity))]


def _first_junk(records: Sequence[Record]) -> str:
    return next(r.path for r in records if _is_number(r.identity) and int(r.identity) == JUNK_IDENTITY)
