"""What a dataset is: three lists of samples, and the registry that configs choose from."""

from __future__ import annotations

import itertools
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


@dataclass(frozen=True)
class Sample:
    """One image of a dataset: its path, its identity's number and its camera's, which counts from 0."""

    path: str
    identity: int
    camera: int


class Record(NamedTuple):
    """One image as a dataset describes it: any identity name, and no camera where it is its own."""

    path: str
    identity: str | int
    camera: int | None = None


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
    """

    name: str
    train: list[Sample]
    query: list[Sample]
    gallery: list[Sample]
    identity_map: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """The number of training identities."""
        return len(self.identity_map)

    @classmethod
    def from_records(
        cls, name: str, train: Iterable[Record], query: Iterable[Record], gallery: Iterable[Record]
    ) -> RetrievalDataset:
        """Sort the images, relabel the training identities from 0 and number what has only a name.

        Raises:
            UserError: a part is empty, an image is listed twice, or a training identity is negative.
        """
        parts = {
            part: _sorted_unique(name, part, records)
            for part, records in (("train", train), ("query", query), ("gallery", gallery))
        }
        labels = {str(identity): label for label, identity in enumerate(_in_order(parts["train"]))}
        if str(JUNK_IDENTITY) in labels:
            raise UserError(
                f"{name}: training image {_first_junk(parts['train'])} has the junk identity "
                f"{JUNK_IDENTITY}, which only gallery images may have"
            )
        tested = parts["query"] + parts["gallery"]
        numbers = _numbers(_in_order(tested))
        cameras = _own_cameras(tested)
        return cls(
            name=name,
            train=_samples(parts["train"], labels, _own_cameras(parts["train"])),
            query=_samples(parts["query"], numbers, cameras),
            gallery=_samples(parts["gallery"], numbers, cameras),
            identity_map=labels,
        )


def _sorted_unique(name: str, part: str, records: Iterable[Record]) -> list[Record]:
    ordered = sorted(records, key=lambda record: record.path)
    if not ordered:
        raise UserError(f"{name}: the {part} part holds no image")
    for before, after in itertools.pairwise(ordered):
        if before.path == after.path:
            raise UserError(f"{name}: {after.path} is listed twice in the {part} part")
    return ordered


def _in_order(records: Sequence[Record]) -> list[str | int]:
    """Distinct identities: by number where all are numbers, else by name."""
    identities = {record.identity for record in records}
    if all(_is_number(identity) for identity in identities):
        return sorted({int(identity) for identity in identities})
    return sorted({str(identity) for identity in identities})


def _numbers(identities: Sequence[str | int]) -> dict[str, int]:
    if all(_is_number(identity) for identity in identities):
        return {str(identity): int(identity) for identity in identities}
    named = [identity for identity in identities if str(identity) != str(JUNK_IDENTITY)]
    return {str(JUNK_IDENTITY): JUNK_IDENTITY} | {str(identity): n for n, identity in enumerate(named)}


def _is_number(identity: str | int) -> bool:
    return isinstance(identity, int) or identity.removeprefix("-").isdecimal()


def _own_cameras(records: Sequence[Record]) -> dict[str, int]:
    """A camera for each file that has none; a file in both query and gallery keeps one camera."""
    return {path: camera for camera, path in enumerate(sorted({r.path for r in records if r.camera is None}))}


def _samples(records: Sequence[Record], numbers: dict[str, int], cameras: dict[str, int]) -> list[Sample]:
    def number(identity: str | int) -> int:
        text = str(identity)
        return numbers[text] if text in numbers else numbers[str(int(identity))]

    return [
        Sample(r.path, number(r.identity), cameras[r.path] if r.camera is None else r.camera) for r in records
    ]


def _first_junk(records: Sequence[Record]) -> str:
    return next(r.path for r in records if str(r.identity) == str(JUNK_IDENTITY))
