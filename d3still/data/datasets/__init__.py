"""The datasets, one file each; importing this package registers them."""

from d3still.data.datasets.base import DATASETS, JUNK_IDENTITY, Record, RetrievalDataset, Sample

__all__ = ["DATASETS", "JUNK_IDENTITY", "Record", "RetrievalDataset", "Sample"]
