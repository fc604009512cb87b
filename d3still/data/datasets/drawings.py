"""The two sets of drawings that come with a clone (datasets/emoji/README.md, datasets/icons/README.md)."""

from __future__ import annotations

from pathlib import Path

from d3still.data.datasets.base import DATASETS, RetrievalDataset
from d3still.data.datasets.embedded import load_embedded


@DATASETS.register("emoji")
def emoji(root: Path, split: str = "test") -> RetrievalDataset:
    """1,078 emoji as five vendors draw them in seven sets: one identity a code point, one camera a vendor.

    7,366 images of 96 × 96 pixels.

    Args:
        root: the folder with emoji.zip and split.json, or the one that holds it as ``emoji``.
        split: "test": 700 training identities, 378 tested ones. "val": 600 of the 700, the other 100 tested.

    Raises:
        UserError: see `load_embedded`.
    """
    return load_embedded("emoji", "[0-9a-f]+(?:-[0-9a-f]+)*", root, split)  # 1f600_c002_twemoji.webp


@DATASETS.register("icons")
def icons(root: Path, split: str = "test") -> RetrievalDataset:
    """952 user-interface icons as at least five of 34 icon sets draw them: one identity a name, one camera a set.

    7,792 images of 96 × 96 pixels.

    Args:
        root: the folder with icons.zip and split.json, or the one that holds it as ``icons``.
        split: "test": 476 training identities, as many tested ones. "val": 428 of the 476, the other 48 tested.

    Raises:
        UserError: see `load_embedded`.
    """
    return load_embedded("icons", "[a-z0-9]+(?:-[a-z0-9]+)*", root, split)  # arrow-down_c001_tabler.webp
