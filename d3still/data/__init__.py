"""Images and batches: datasets, reading, augmentation, samplers and loaders."""

from d3still.data.batch import ImageBatch, Normalizer, PairBatch
from d3still.data.build import build_dataset
from d3still.data.datasets import DATASETS, Record, RetrievalDataset, Sample
from d3still.data.image import ImageError, read_image
from d3still.data.loaders import identity_loader, pair_loader, test_loader
from d3still.data.prefetch import BatchLoader
from d3still.data.sources import ImageCache

__all__ = [
    "DATASETS",
    "BatchLoader",
    "ImageBatch",
    "ImageCache",
    "ImageError",
    "Normalizer",
    "PairBatch",
    "Record",
    "RetrievalDataset",
    "Sample",
    "build_dataset",
    "identity_loader",
    "pair_loader",
    "read_image",
    "test_loader",
]
