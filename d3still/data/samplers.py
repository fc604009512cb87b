"""Which images make which batch: functions of seed and epoch, the same on every rank.

A batch is a list of (position, index): the image's position in the epoch, counted over all ranks, which
keys its augmentation, and its place in the dataset's list. Rank r of W gets the r-th contiguous W-th of
each global batch, so that the ranks' parts in order are the batch of a single process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from d3still.errors import UserError

Batch = list[tuple[int, int]]
IDENTITY_STREAM, PAIR_STREAM, PLAIN_STREAM = 1, 2, 3  # samplers of one seed must not draw alike
_WORD = 2**64


class BatchSampler(Protocol):
    """What a loader needs to know about a sampler."""

    def epoch(self, epoch: int) -> list[Batch]:
        """This rank's batches of an epoch."""
        ...

    def num_batches(self, epoch: int) -> int:
        """How many there are."""
        ...


class IdentityBalancedBatches:
    """Batches of P identities × K images, each identity once in a global batch.

    Each identity's shuffled images are cut into groups of K; a rest is dropped, and an identity with fewer
    than K images gives one group drawn with replacement. A batch takes a group from each of P random
    identities. The epoch ends when fewer than P identities have groups left, so its length varies a little.

    Args:
        identities: of each image.
        batch_size: images in a global batch, P · K.
        num_instances: K.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        key: the config key that sets the batch size, named in errors.
        stream: tells apart the draws of two loaders that step together.

    Raises:
        UserError: sizes that do not divide, or fewer than P identities.
    """

    def __init__(
        self,
        identities: Sequence[int],
        batch_size: int,
        num_instances: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        key: str = "SOLVER.IMS_PER_BATCH",
        stream: int = IDENTITY_STREAM,
    ) -> None:
        _check_positive(key, batch_size)
        _check_positive("DATALOADER.NUM_INSTANCE", num_instances)
        if batch_size % (num_instances * world_size):
            ranks = f" times {world_size} ranks" if world_size > 1 else ""
            raise UserError(
                f"{key} {batch_size} is not a multiple of DATALOADER.NUM_INSTANCE "
                f"{num_instances}{ranks}; each rank takes whole identities"
            )
        self._members = _indices_by_identity(identities)
        self._per_batch = batch_size // num_instances
        if len(self._members) < self._per_batch:
            raise UserError(
                f"the training set has {len(self._members)} identities, but a batch needs "
                f"{self._per_batch} ({key} {batch_size} / DATALOADER.NUM_INSTANCE {num_instances}); "
                "lower the first or raise the second"
            )
        self._instances, self._seed, self._stream = num_instances, seed, stream
        self._rank, self._world_size = rank, world_size
        self._latest: tuple[int, list[Batch]] = (-1, [])

    def epoch(self, epoch: int) -> list[Batch]:
        """This rank's batches of an epoch."""
        if self._latest[0] != epoch:
            batches = self._global_batches(_generator(self._seed, epoch, self._stream))
            self._latest = (epoch, _deal(batches, self._rank, self._world_size))
        return self._latest[1]

    def num_batches(self, epoch: int) -> int:
        """How many batches `epoch` gives."""
        return len(self.epoch(epoch))

    def _global_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        groups = [self._groups(members, rng) for members in self._members]
        left = np.array([len(g) for g in groups])
        open_identities = np.arange(len(groups))
        batches = []
        while len(open_identities) >= self._per_batch:
            chosen = rng.choice(open_identities, self._per_batch, replace=False)
            left[chosen] -= 1
            batches.append(np.concatenate([groups[i][left[i]] for i in chosen]))
            if not left[chosen].all():
                open_identities = open_identities[left[open_identities] > 0]
        return batches

    def _groups(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if len(members) < self._instances:
            return rng.choice(members, (1, self._instances))
        count = len(members) // self._instances
        return rng.permutation(members)[: count * self._instances].reshape(count, self._instances)


class ShuffledBatches:
    """Plain shuffled batches.

    Args:
        num_samples: images in the dataset.
        batch_size: images in a global batch.
        drop_last: leave out a last short batch. Otherwise it is dealt as evenly as it goes, and left out
            only where some rank would get nothing.
        seed, rank, world_size, key, stream: as of `IdentityBalancedBatches`.

    Raises:
        UserError: a size that the ranks do not divide, or an epoch without a single batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        key: str = "SOLVER.IMS_DISTILLATION_PER_BATCH",
        stream: int = PAIR_STREAM,
    ) -> None:
        _check_positive(key, batch_size)
        if batch_size % world_size:
            raise UserError(f"{key} {batch_size} is not a multiple of the {world_size} ranks")
        full, rest = divmod(num_samples, batch_size)
        self._count = full + (not drop_last and rest >= world_size)
        if not self._count:
            raise UserError(
                f"the training set has {num_samples} images, fewer than one batch; lower {key} {batch_size}"
            )
        self._num_samples, self._batch_size = num_samples, batch_size
        self._seed, self._stream = seed, stream
        self._rank, self._world_size = rank, world_size

    def epoch(self, epoch: int) -> list[Batch]:
        """This rank's batches of an epoch."""
        order = _generator(self._seed, epoch, self._stream).permutation(self._num_samples)
        starts = range(0, self._count * self._batch_size, self._batch_size)
        return _deal([order[s : s + self._batch_size] for s in starts], self._rank, self._world_size)

    def num_batches(self, epoch: int) -> int:
        """How many batches `epoch` gives."""
        return self._count


class SequentialBatches:
    """Every image once and in order, for testing: rank r of W takes images r, r + W, …

    No image is repeated to fill up: 5 images on 2 ranks are 3 and 2. ``batch_size`` is a rank's.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        _check_positive("TEST.IMS_PER_BATCH", batch_size)
        own = [(index, index) for index in range(rank, num_samples, world_size)]
        self._batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]

    def epoch(self, epoch: int = 0) -> list[Batch]:
        """This rank's batches."""
        return self._batches

    def num_batches(self, epoch: int = 0) -> int:
        """How many batches `epoch` gives."""
        return len(self._batches)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed % _WORD, epoch, stream])


def _indices_by_identity(identities: Sequence[int]) -> list[np.ndarray]:
    values = np.asarray(identities)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order])) + 1
    return np.split(order, starts) if len(values) else []


def _deal(batches: list[np.ndarray], rank: int, world_size: int) -> list[Batch]:
    dealt, start = [], 0
    for batch in batches:
        positions = np.array_split(np.arange(start, start + len(batch)), world_size)[rank]
        indices = np.array_split(batch, world_size)[rank]
        dealt.append(list(zip(positions.tolist(), indices.tolist(), strict=True)))
        start += len(batch)
    return dealt


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{key} is {value}; it must be at least 1")
