"""Features in files: what any tool extracted, ranked here; what was extracted here, used elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d3still.errors import UserError
from d3still.evaluation.arrays import as_tensor
from d3still.evaluation.labels import as_labels
from d3still.files import require_regular, write_atomically

# The first name is ours; the others are what other tools write.
_NAMES = {
    "features": ("features", "feats", "feat", "embeddings", "embedding"),
    "ids": ("ids", "pids", "labels", "identities"),
    "cams": ("cams", "camids", "cameras"),
    "paths": ("paths", "files", "names"),
}


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images with their identities and, where known, cameras and file names."""

    features: np.ndarray  # (N, D) floating point
    ids: np.ndarray  # (N,) int64, −1 is junk
    cams: np.ndarray | None = None  # (N,) int64; None: each image is its own camera
    paths: np.ndarray | None = None  # (N,) strings

    def __len__(self) -> int:
        return len(self.features)


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Read a feature file: an ``.npz`` with ``features`` (N, D), ``ids`` (N,), optional ``cams`` and ``paths``.

    ``feats``, ``feat``, ``embeddings``, ``pids``, ``labels``, ``camids`` and the like are understood too.
    Nothing in the file is executed.

    Raises:
        UserError: naming the file, and the array where one is missing, of the wrong shape or kind.
    """
    path = Path(path)
    try:
        require_regular(path)
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; save features and ids together by numpy.savez")
            found = {name: _entry(archive, name, path) for name in _NAMES}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have each their own for what is damaged
        raise UserError(f"{path} is not a readable .npz file of plain arrays ({error})") from None
    for name in ("features", "ids"):
        if found[name] is None:
            raise UserError(f"{path} has no array '{name}' (also understood: {', '.join(_NAMES[name][1:])})")
    return _checked(path, **found)


def save_features(
    path: str | os.PathLike[str],
    features: Any,
    ids: Any,
    cams: Any = None,
    paths: Any = None,
) -> None:
    """Write a feature file that `load_features` reads.

    Args:
        path: the ``.npz`` to write; it appears complete or not at all.
        features, ids, cams, paths: as in `FeatureSet`, arrays, tensors or lists.

    Raises:
        UserError: for arrays that do not fit together, or a file that cannot be written.
    """
    path = Path(path)
    checked = _checked(path, np.asarray(as_tensor(features, "features").cpu()), ids, cams, paths)
    arrays = {name: value for name in _NAMES if (value := getattr(checked, name)) is not None}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def pair_cameras(query: FeatureSet, gallery: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    """Cameras of both sets, made up where the files have none: then each image is its own camera.

    An image that is in both sets gets one camera, so that it is removed from its own ranking. It is known by
    its path; without paths, two sets with equal features and identities are taken to be the same images.

    Raises:
        UserError: when only one of the sets has cameras.
    """
    if (query.cams is None) != (gallery.cams is None):
        with_cams, without = ("gallery", "query") if query.cams is None else ("query", "gallery")
        raise UserError(f"the {with_cams} features have 'cams', the {without} features have none: give both or neither")
    if query.cams is not None and gallery.cams is not None:
        return query.cams, gallery.cams
    if query.paths is not None and gallery.paths is not None:
        _, number = np.unique(np.concatenate([query.paths, gallery.paths]), return_inverse=True)
        return number[: len(query)], number[len(query) :]
    same = np.array_equal(query.ids, gallery.ids) and np.array_equal(query.features, gallery.features)
    return np.arange(len(query)), np.arange(len(gallery)) + (0 if same else len(query))


def _entry(archive: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray | None:
    present = [key for key in _NAMES[name] if key in archive]
    if len(present) > 1:
        raise UserError(f"{path} has both '{present[0]}' and '{present[1]}': keep one of them as '{name}'")
    try:
        return archive[present[0]] if present else None
    except ValueError as error:
        raise UserError(f"{path}: array '{present[0]}' is not an array of plain numbers or strings ({error})") from None


def _checked(path: Path, features: np.ndarray, ids: Any, cams: Any, paths: Any) -> FeatureSet:
    if features.ndim != 2:
        raise UserError(f"{path}: 'features' must have the shape (images, width), not {features.shape}")
    if features.dtype.kind not in "fiu":
        raise UserError(f"{path}: 'features' must be numbers, not {features.dtype}")
    paths = None if paths is None else np.asarray(paths)
    if paths is not None and (paths.dtype.kind != "U" or paths.shape != (len(features),)):
        raise UserError(f"{path}: 'paths' must be {len(features)} strings, not {paths.dtype} of shape {paths.shape}")
    return FeatureSet(
        features,
        as_labels(ids, f"{path}: 'ids'", len(features)),
        None if cams is None else as_labels(cams, f"{path}: 'cams'", len(features)),
        paths,
    )
