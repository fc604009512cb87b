"""What users pass in — tensors, arrays, lists — brought to one form, with errors that name the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.text import some


def comparable(query_feats: Any, gallery_feats: Any) -> tuple[Tensor, Tensor]:
    """Raw features (Q, D), (G, D) as tensors on the CPU, or both on the CUDA device of either.

    Both float64 where one is of float64 or wide integers, else float32; nothing is copied without need.

    Raises:
        UserError: for shapes that are not two-dimensional, values that are no numbers, widths that differ, and values
            that are not finite (naming the images).
    """
    query, gallery = _as_features(query_feats, "query"), _as_features(gallery_feats, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query features are {query.shape[1]} wide, gallery features {gallery.shape[1]}: "
            "both networks must embed in the same space"
        )
    check_finite(query, "query features")
    check_finite(gallery, "gallery features")
    device = gallery.device if gallery.is_cuda else query.device
    dtype = torch.promote_types(query.dtype, gallery.dtype)
    return query.to(device, dtype), gallery.to(device, dtype)


def _as_features(values: Any, name: str) -> Tensor:
    tensor = as_tensor(values, f"{name}_feats")
    if tensor.ndim != 2:
        raise UserError(f"{name}_feats must have the shape (images, width), not {tuple(tensor.shape)}")
    if len(tensor) and tensor.shape[1] == 0:
        raise UserError(f"{name}_feats have width 0: {tuple(tensor.shape)}")
    return tensor


def as_tensor(values: Any, name: str) -> Tensor:
    """A float32 or float64 tensor on the CPU or a CUDA device; a `UserError` for what is not numbers."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise UserError(f"{name} must be numbers, not {array.dtype}")
        # torch shares memory only with arrays that are native, writable and not reversed
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if tensor.is_complex():
        raise UserError(f"{name} must be real numbers, not {tensor.dtype}")
    wide = tensor.dtype in (torch.float64, torch.int64, torch.int32)
    tensor = tensor if tensor.device.type == "cuda" else tensor.cpu()
    return tensor.to(torch.float64 if wide else torch.float32)


def check_finite(values: Tensor, what: str) -> None:
    """Raise a `UserError` that names the rows of ``values`` (n, D) that are NaN or infinite."""
    if values.sum().isfinite():  # 20 times as fast; NaN and infinities never sum to less, finite numbers may to more
        return
    bad = ~torch.isfinite(values).all(dim=1)
    if not bad.any():
        return
    rows = bad.nonzero()[:, 0].tolist()
    named = some(rows, most=5)
    raise UserError(
        f"{len(rows)} of {len(values)} {what} are NaN or infinite (those of images {named}, counted from 0): "
        "look at these images, and at whether the training diverged"
    )


def at_least(least: int, value: int, name: str) -> int:
    """A whole number; a `UserError` for one below ``least`` and for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)
