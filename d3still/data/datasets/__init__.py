"""The datasets, one file each; every module of this package is imported, which registers its datasets."""

import importlib
import pkgutil

from d3still.data.datasets.base import DATASETS, JUNK_IDENTITY, Record, RetrievalDataset, Sample

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["DATASETS", "JUNK_IDENTITY", "Record", "RetrievalDataset", "Sample"]
