"""Images and batches: datasets, reading, augmentation, samplers and loaders."""

from d3still.data.build import build_dataset
from d3still.data.datasets import DATASETS, Record, RetrievalDataset, Sample

__all__ = ["DATASETS", "Record", "RetrievalDataset", "Sample", "build_dataset"]
