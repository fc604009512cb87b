"""Who may match whom: identities and cameras turned into slices of a sorted gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d3still.errors import UserError
from d3still.text import some

JUNK_IDENTITY = -1  # images without an identity: never ranked, neither as hit nor as miss


def spans(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers of the half-open intervals [start_i, stop_i), as flat (i, integer) lists in order of i."""
    length = stop - start
    owner = np.repeat(np.arange(len(start)), length)
    shift = start - (np.cumsum(length) - length)
    return owner, np.arange(len(owner)) + shift[owner]


def row_starts(rows: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    if len(rows) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.append(0, np.flatnonzero(rows[1:] != rows[:-1]) + 1)


@dataclass(frozen=True)
class Matches:
    """The gallery without junk, sorted by identity and camera, and each query's place in it.

    *Columns* are positions in ``gallery_order``. Query i's identity fills the columns
    ``start[i]:stop[i]``; of these, ``own_start[i]:own_stop[i]`` are its own camera's and are removed.
    A query without identity (−1), or whose identity the gallery lacks, has empty slices.
    """

    gallery_order: np.ndarray  # (N,) index of each column in the caller's gallery
    start: np.ndarray  # (Q,) each
    stop: np.ndarray
    own_start: np.ndarray
    own_stop: np.ndarray

    @property
    def num_hits(self) -> np.ndarray:
        """How many gallery images count as right for each query (Q,)."""
        return (self.stop - self.start) - (self.own_stop - self.own_start)

    def same_identity(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every gallery image of a query's identity; rows count within ``queries``."""
        return spans(self.start[queries], self.stop[queries])

    def own_camera(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every gallery image that the same-camera rule removes."""
        return spans(self.own_start[queries], self.own_stop[queries])

    def hits(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every right answer, in order of rows."""
        rows, columns = self.same_identity(queries)
        first, last = self.own_start[queries][rows], self.own_stop[queries][rows]
        kept = (columns < first) | (columns >= last)
        return rows[kept], columns[kept]


def match(
    query_ids: Any,
    gallery_ids: Any,
    query_cams: Any,
    gallery_cams: Any,
    sizes: tuple[int, ...],
    own_camera: bool,
) -> Matches:
    """Pair up identities and cameras.

    Args:
        query_ids, gallery_ids, query_cams, gallery_cams: whole numbers, one an image.
        sizes: the number of queries and of gallery images.
        own_camera: whether gallery images of the query's identity and camera are removed.

    Raises:
        UserError: for empty sets, labels of the wrong length or kind, and when no query has a match left.
    """
    num_queries, num_gallery = sizes
    if num_queries == 0 or num_gallery == 0:
        raise UserError(f"the {'query' if num_queries == 0 else 'gallery'} set is empty: there is nothing to rank")
    query_ids = as_labels(query_ids, "query_ids", num_queries)
    gallery_ids = as_labels(gallery_ids, "gallery_ids", num_gallery)
    query_cams = as_labels(query_cams, "query_cams", num_queries)
    gallery_cams = as_labels(gallery_cams, "gallery_cams", num_gallery)
    matches = _sorted_slices(query_ids, gallery_ids, query_cams, gallery_cams, own_camera)
    if not matches.num_hits.any():
        raise UserError(_why_no_match(matches, query_ids, gallery_ids))
    return matches


def _sorted_slices(
    query_ids: np.ndarray, gallery_ids: np.ndarray, query_cams: np.ndarray, gallery_cams: np.ndarray, own: bool
) -> Matches:
    _, identity = np.unique(np.concatenate([query_ids, gallery_ids]), return_inverse=True)
    cameras, camera = np.unique(np.concatenate([query_cams, gallery_cams]), return_inverse=True)
    key = identity * len(cameras) + camera  # sorts by identity, then camera
    query_key, gallery_key = key[: len(query_ids)], key[len(query_ids) :]
    kept = np.flatnonzero(gallery_ids != JUNK_IDENTITY)
    order = kept[np.argsort(gallery_key[kept], kind="stable")]
    gallery_key = gallery_key[order]

    first_key = identity[: len(query_ids)] * len(cameras)
    start = np.searchsorted(gallery_key, first_key)
    stop = np.searchsorted(gallery_key, first_key + len(cameras))
    own_start = np.searchsorted(gallery_key, query_key) if own else start
    own_stop = np.searchsorted(gallery_key, query_key, side="right") if own else start
    return Matches(order, start, stop, own_start, own_stop)


def _why_no_match(matches: Matches, query_ids: np.ndarray, gallery_ids: np.ndarray) -> str:
    if (matches.stop > matches.start).any():
        return (
            "no query has a match left: every gallery image of a query's identity comes from the query's own "
            "camera, and the same-camera rule removes those; set TEST.EXCLUDE_SAME_CAMERA: False "
            "(exclude_same_camera=False) to keep them"
        )
    known = [some(np.unique(ids)) for ids in (query_ids, gallery_ids)]
    return (
        "no query has a match: no query identity occurs in the gallery "
        f"(query identities {known[0]}; gallery identities {known[1]}; {JUNK_IDENTITY} marks junk)"
    )


def as_labels(values: Any, name: str, length: int) -> np.ndarray:
    """One whole number an image as an int64 array (length,); a `UserError` naming ``name`` otherwise."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) != length:
        raise UserError(f"{name} must hold one number for each of the {length} images, not shape {array.shape}")
    whole = array.dtype.kind in "iu" or (
        array.dtype.kind == "f" and bool((np.isfinite(array) & (array == np.trunc(array))).all())
    )
    if not whole:
        raise UserError(f"{name} must be whole numbers, not {array.dtype}; number the identities and cameras")
    return array.astype(np.int64)
