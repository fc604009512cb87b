"""From a dataset's name and folder to its lists."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

from d3still.data.datasets import DATASETS, RetrievalDataset
from d3still.errors import UserError
from d3still.files import user_path

logger = logging.getLogger(__name__)

SPLITS = ("test", "val")


def build_dataset(
    name: str, root: str | Path, *, split: str = "test", camera_pattern: str = ""
) -> RetrievalDataset:
    """The dataset registered as ``name``.

    Args:
        name: a registered name (VeRi776, MSMT17, CUB200, InShop, SOP, emoji, folder, csv, …).
        root: the dataset's folder or the one that holds it.
        split: "test", or "val" for identities held out of the training set: those that the dataset names for it, else
            every seventh (`RetrievalDataset.hold_out`).
        camera_pattern: for datasets that take one, a regular expression whose group 1 is the camera.

    Raises:
        UserError: an unknown name, a missing folder, an option that the dataset does not have, or
            whatever is wrong with its files.
    """
    load = DATASETS.get(name)
    if split not in SPLITS:
        raise UserError(f"DATASETS.SPLIT '{split}' is not one of {', '.join(SPLITS)}")
    root = user_path(root, "DATASETS.ROOT_DIR")
    if not root.exists():
        raise UserError(f"{name}: {root} does not exist; set DATASETS.ROOT_DIR to the folder with the data")
    known = inspect.signature(load).parameters
    options: dict[str, str] = {}
    if "split" in known:
        options["split"] = split
    if "camera_pattern" in known:
        options["camera_pattern"] = camera_pattern
    elif camera_pattern:
        raise UserError(f"DATASETS.CAMERA_PATTERN: {name} has its own rule for cameras; leave the key empty")
    dataset = load(root, **options)
    if split == "val" and "split" not in known:
        dataset = dataset.hold_out()
    for note in dataset.notes:
        logger.warning("%s: %s", name, note)
    return dataset
