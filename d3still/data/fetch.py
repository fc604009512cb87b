"""From a list of indices to a batch, the same in the main process, a thread or a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from d3still.data.batch import ImageBatch, PairBatch
from d3still.data.datasets.base import Sample
from d3still.data.image import ImageError
from d3still.data.samplers import Batch
from d3still.data.sources import ImageSource
from d3still.data.transforms import View, place
from d3still.errors import UserError

RAISE, REPLACE, DROP = "raise", "replace", "drop"


@dataclass(frozen=True)
class Request:
    """A batch to be made: the epoch and the (position, index) of each image."""

    epoch: int
    images: Batch


@dataclass(frozen=True)
class Failure:
    """What a user can put right, found in a worker; exceptions would arrive wrapped in torch's own traceback."""

    message: str


NO_SHARED_MEMORY = (
    "the processes that load images cannot hand a batch over ({}); give them more shared memory (/dev/shm; docker run "
    "--shm-size) and open files (ulimit -n), or lower DATALOADER.NUM_WORKERS (0 needs neither) or the batch"
)


class BatchMaker(torch.utils.data.Dataset):
    """Makes a batch of one view (`ImageBatch`) or of two views of each image (`PairBatch`, low first).

    Args:
        samples: the dataset's list.
        source: of the resized images.
        views: one or two.
        seed: of the run.
        on_bad: "raise" stops; "replace" takes the next readable image of the same identity, else the next
            readable one of the list; "drop" leaves the image out.
    """

    def __init__(
        self, samples: Sequence[Sample], source: ImageSource, views: Sequence[View], seed: int, on_bad: str
    ) -> None:
        self._paths = [sample.path for sample in samples]
        self._labels = np.array([sample.identity for sample in samples], dtype=np.int64)
        self._source, self._views = source, tuple(views)
        self._sizes = [view.size for view in views]
        self._seed, self._on_bad = seed, on_bad

    def __getitem__(self, request: Request) -> ImageBatch | PairBatch | Failure:
        """The batch, or what went wrong if the user can put it right.

        A worker shares the batch's memory here: left to the thread that sends it, a failure to do so would be printed,
        the batch lost, and the training wait for it for ever.
        """
        try:
            batch = self.make(request)
        except UserError as error:
            return Failure(str(error))
        if torch.utils.data.get_worker_info() is None:
            return batch
        try:
            return batch.share_memory()
        except (OSError, RuntimeError) as error:
            return Failure(NO_SHARED_MEMORY.format(" ".join(str(error).split())))

    def make(self, request: Request) -> ImageBatch | PairBatch:
        """The batch.

        Raises:
            UserError: an image cannot be read and bad images are not skipped.
        """
        count, positions = len(request.images), [position for position, _ in request.images]
        draws = [view.draw(self._seed, request.epoch, positions) for view in self._views]
        moves = [list(zip(d.flips.tolist(), d.shifts.tolist(), strict=True)) for d in draws]
        pixels = [np.zeros((count, 3, *size), dtype=np.uint8) for size in self._sizes]
        rows: list[int] = []
        indices: list[int] = []
        skipped: list[str] = []
        for row, (_, wanted) in enumerate(request.images):
            index, images = self._read(wanted, skipped)
            if index is None:
                continue
            # Each image goes to its place before the next is decoded, while it is still in the cache.
            for image, target, move in zip(images, pixels, moves, strict=True):
                flip, (down, right) = move[row]
                place(image, target[len(rows)], flip, down, right)
            rows.append(row)
            indices.append(index)
        skipped = list(dict.fromkeys(skipped))
        batches = [
            ImageBatch(
                pixels=torch.from_numpy(view_pixels[: len(rows)]),
                erase=torch.from_numpy(draw.boxes[rows]),
                labels=torch.from_numpy(self._labels[indices]),
                indices=torch.tensor(indices, dtype=torch.int64),
                skipped=skipped,
            )
            for view_pixels, draw in zip(pixels, draws, strict=True)
        ]
        return batches[0] if len(batches) == 1 else PairBatch(*batches)

    def _read(self, index: int, skipped: list[str]) -> tuple[int | None, list[np.ndarray]]:
        """The image, or what takes its place, by index and by size; (None, []) where it is left out."""
        for candidate in self._candidates(index):
            try:
                return candidate, self._source.images(candidate, self._sizes)
            except ImageError:
                if self._on_bad == RAISE:
                    raise
                skipped.append(self._paths[candidate])
        if self._on_bad == DROP:
            return None, []
        raise UserError(f"none of the {len(self._paths)} images can be read; the first is {self._paths[0]}")

    def _candidates(self, index: int) -> Iterator[int]:
        """The image, then what may stand in for it, in an order that follows from the lists alone."""
        yield index
        if self._on_bad != REPLACE:
            return
        others = np.roll(np.arange(len(self._paths)), -index - 1)[:-1]
        same = self._labels[others] == self._labels[index]
        yield from others[same].tolist()
        yield from others[~same].tolist()
