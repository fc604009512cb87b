"""The three loaders: identity-balanced batches, pairs of views, and test images.

Each gives `BatchLoader`: batches that follow from seed and epoch alone, whatever makes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from d3still.data.datasets.base import Sample
from d3still.data.fetch import DROP, RAISE, REPLACE, BatchMaker
from d3still.data.image import MAX_PIXELS
from d3still.data.prefetch import BatchLoader
from d3still.data.samplers import (
    PAIR_STREAM,
    PLAIN_STREAM,
    BatchSampler,
    IdentityBalancedBatches,
    SequentialBatches,
    ShuffledBatches,
)
from d3still.data.sources import DiskImages, ImageCache
from d3still.data.transforms import View
from d3still.errors import UserError

_BALANCED_VIEW, _LOW_VIEW, _HIGH_VIEW = 1, 2, 3  # streams of random numbers: no two views draw alike


def identity_loader(
    samples: Sequence[Sample],
    *,
    size: Sequence[int],
    padding: int,
    flip_prob: float,
    erase_prob: float,
    batch_size: int,
    num_instances: int,
    seed: int,
    sampler: str = "triplet",
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    cache: str | ImageCache = "none",
    on_bad_image: str = "raise",
    max_pixels: int = MAX_PIXELS,
    pin_memory: bool = False,
) -> BatchLoader:
    """Training batches (`ImageBatch`) for cross entropy and triplet loss.

    Args:
        samples: training images with labels 0 … C − 1.
        size: height and width.
        padding: zeros around the image before the random crop back to ``size``.
        flip_prob: probability of a horizontal flip.
        erase_prob: probability of random erasing.
        batch_size: images in a global batch, over all ranks.
        num_instances: images of an identity in a batch ("triplet" only).
        seed: of the run.
        sampler: "triplet" for identity-balanced batches, "softmax" for a plain shuffle.
        rank: of this process.
        world_size: number of processes.
        num_workers: upper bound of worker processes; 0 = a thread of this process.
        cache: "none", "ram", or an `ImageCache` over the same samples to share.
        on_bad_image: "raise", or "skip" to put the next image of the identity in its place.
        max_pixels: the largest image that is decoded, see `d3still.data.image.read_image`; a shared cache has its own.
        pin_memory: give batches in page-locked memory.

    Raises:
        UserError: sizes, labels or counts from which no batch can be made.
    """
    check_labels(samples)
    batches: BatchSampler
    if sampler == "triplet":
        identities = [sample.identity for sample in samples]
        batches = IdentityBalancedBatches(identities, batch_size, num_instances, seed, rank, world_size)
    elif sampler == "softmax":
        key = "SOLVER.IMS_PER_BATCH"
        batches = ShuffledBatches(len(samples), batch_size, seed, True, rank, world_size, key=key, stream=PLAIN_STREAM)
    else:
        raise UserError(f"DATALOADER.SAMPLER '{sampler}' is neither 'triplet' nor 'softmax'")
    view = View(_size(size), padding, flip_prob, erase_prob, _BALANCED_VIEW)
    maker = _maker(samples, [view], seed, cache, on_bad_image, REPLACE, max_pixels)
    return BatchLoader(maker, batches, _workers(num_workers, cache), pin_memory)


def pair_loader(
    samples: Sequence[Sample],
    *,
    low_size: Sequence[int],
    low_padding: int,
    high_size: Sequence[int],
    high_padding: int,
    flip_prob: float,
    erase_prob: float,
    batch_size: int,
    seed: int,
    num_instances: int = 1,
    sampler: str = "random",
    drop_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    cache: str | ImageCache = "none",
    on_bad_image: str = "raise",
    max_pixels: int = MAX_PIXELS,
    pin_memory: bool = False,
) -> BatchLoader:
    """Training batches (`PairBatch`) of two views, drawn independently from one decoded image.

    Args:
        low_size: height and width for the query network.
        low_padding: zeros around the low-resolution view before its crop.
        high_size: height and width for the gallery network.
        high_padding: zeros around the high-resolution view before its crop.
        num_instances: images of an identity in a batch ("identity" only).
        sampler: "random" for a plain shuffle, "identity" for batches as those of `identity_loader`.
        drop_last: leave out a last short batch ("random" only).

    The other arguments and errors are those of `identity_loader`.
    """
    check_labels(samples)
    batches: BatchSampler
    if sampler == "random":
        batches = ShuffledBatches(len(samples), batch_size, seed, drop_last, rank, world_size)
    elif sampler == "identity":
        identities, key = [sample.identity for sample in samples], "SOLVER.IMS_DISTILLATION_PER_BATCH"
        batches = IdentityBalancedBatches(
            identities, batch_size, num_instances, seed, rank, world_size, key=key, stream=PAIR_STREAM
        )
    else:
        raise UserError(f"DATALOADER.PAIR_SAMPLER '{sampler}' is neither 'random' nor 'identity'")
    views = [
        View(_size(low_size), low_padding, flip_prob, erase_prob, _LOW_VIEW),
        View(_size(high_size), high_padding, flip_prob, erase_prob, _HIGH_VIEW),
    ]
    maker = _maker(samples, views, seed, cache, on_bad_image, REPLACE, max_pixels)
    return BatchLoader(maker, batches, _workers(num_workers, cache), pin_memory)


def test_loader(
    samples: Sequence[Sample],
    *,
    size: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
    cache: str | ImageCache = "none",
    on_bad_image: str = "raise",
    max_pixels: int = MAX_PIXELS,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> BatchLoader:
    """Every image once, resized only, in order, dealt over the ranks without repeats (`ImageBatch`).

    ``indices`` of the batches say which images they hold. With ``on_bad_image="skip"`` unreadable images
    are left out, so that a batch may be short or even empty. ``batch_size`` is that of each rank.
    """
    if not samples:
        raise UserError("there are no images to test")
    batches = SequentialBatches(len(samples), batch_size, rank, world_size)
    maker = _maker(samples, [View(_size(size))], 0, cache, on_bad_image, DROP, max_pixels)
    return BatchLoader(maker, batches, _workers(num_workers, cache), pin_memory)


test_loader.__test__ = False  # pytest must not take it for a test


def check_labels(samples: Sequence[Sample]) -> None:
    """Whether training labels run from 0 to the number of identities − 1.

    Raises:
        UserError: they do not, or there are no samples; names the first wrong label and its image.
    """
    if not samples:
        raise UserError("the training set holds no image")
    count = len({sample.identity for sample in samples})
    for sample in samples:
        if not 0 <= sample.identity < count:
            raise UserError(
                f"training label {sample.identity} of {sample.path} is outside 0 … {count - 1} "
                f"({count} identities); relabel them, as RetrievalDataset.from_records does"
            )


def _maker(
    samples: Sequence[Sample],
    views: list[View],
    seed: int,
    cache: str | ImageCache,
    on_bad_image: str,
    instead: str,
    max_pixels: int,
) -> BatchMaker:
    if on_bad_image not in ("raise", "skip"):
        raise UserError(f"DATALOADER.ON_BAD_IMAGE '{on_bad_image}' is neither 'raise' nor 'skip'")
    on_bad = RAISE if on_bad_image == "raise" else instead
    if isinstance(cache, str) and cache not in ("none", "ram"):
        raise UserError(f"DATALOADER.CACHE '{cache}' is neither 'none' nor 'ram'")
    if cache == "none":
        return BatchMaker(samples, DiskImages(samples, max_pixels), views, seed, on_bad)
    if not isinstance(cache, ImageCache):
        cache = ImageCache(samples, on_bad_image=on_bad_image, max_pixels=max_pixels)
    if cache.files != [(sample.path, sample.box) for sample in samples]:
        raise ValueError("the shared ImageCache holds other images than the loader's samples")
    cache.load([view.size for view in views])
    return BatchMaker(samples, cache, views, seed, on_bad)


def _workers(num_workers: int, cache: str | ImageCache) -> int:
    """Cached images need no processes: what is left to do per batch is a copy."""
    if num_workers < 0:
        raise UserError(f"DATALOADER.NUM_WORKERS is {num_workers}; it must be at least 0")
    return num_workers if cache == "none" else 0


def _size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"image size {list(size)} is not [height, width], both at least 1")
    return int(size[0]), int(size[1])
