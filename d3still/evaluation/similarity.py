"""Scores of query–gallery pairs from features: in blocks as a product of prepared rows, or pair by pair.

On the CPU everything is numpy's: torch's threads and those of numpy's product would wait for each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.evaluation.arrays import as_features, check_finite, same_kind

Array = Any  # a numpy array on the CPU, a tensor on a CUDA device

_SHORTEST = float(np.finfo(np.float32).tiny)  # a shorter vector has no direction: cosine 0 with everything
_SQUARES = (1e-30, 1e30)  # squared norms that float32 holds well
_UNIT_ROUNDOFF = 2.0**-53  # of double precision
_ROWS_AT_ONCE = 1024  # bounds the memory of rows in the making
_CENTER_SAMPLE = 1000  # gallery images that the middle is taken of, about
_PAIRS_AT_ONCE = 256  # small enough that the gathered rows stay in the cache


class Similarity(ABC):
    """Scores between query and gallery features, higher is nearer.

    Subclasses say how rows are prepared so that ``query_rows(…) @ gallery_rows(…).T`` holds the scores.

    Args:
        query, gallery: (Q, D), (G, D) finite float32 or float64, both arrays or both CUDA tensors.
    """

    def __init__(self, query: Array, gallery: Array) -> None:
        self.query, self.gallery = query, gallery

    @property
    def on_cuda(self) -> bool:
        """Whether the features are on a CUDA device."""
        return isinstance(self.query, Tensor)

    @property
    @abstractmethod
    def product_width(self) -> int:
        """D′, the width of the factors of the product."""

    @abstractmethod
    def _prepare(self, rows: Array, left: bool, out: Array) -> None:
        """Write rows of one factor of the product, made from the features ``rows``, to ``out``."""

    @abstractmethod
    def _score(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Scores of pairs of double-precision rows (n,)."""

    @abstractmethod
    def magnitude(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Size of the numbers behind each pair's score (n,): what its rounding error is proportional to."""

    @abstractmethod
    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """The number to show for each pair (n,): cosine or Euclidean distance."""

    def query_rows(self, index: np.ndarray, dtype: type = np.float64) -> Array:
        """Left factor of the product for these queries (n, D′)."""
        return self._rows(self.query, index, dtype, left=True)

    def gallery_rows(self, index: np.ndarray, dtype: type = np.float64) -> Array:
        """Right factor of the product for these gallery images (n, D′)."""
        return self._rows(self.gallery, index, dtype, left=False)

    def _rows(self, features: Array, index: np.ndarray, dtype: type, left: bool) -> Array:
        out = self._empty((len(index), self.product_width), dtype)
        kind = dtype if is_single(features) else np.float64  # narrowed last
        for low in range(0, len(index), _ROWS_AT_ONCE):
            part = slice(low, low + _ROWS_AT_ONCE)
            self._prepare(_take(features, index[part], kind), left, out[part])
        return out

    def _empty(self, shape: tuple[int, int], dtype: type) -> Array:
        if not self.on_cuda:
            return np.empty(shape, dtype)
        return self.query.new_empty(shape, dtype=torch.float32 if dtype == np.float32 else torch.float64)

    def score_rows(self, queries: np.ndarray, gallery: np.ndarray) -> Tensor:
        """Scores in double precision (len(queries), len(gallery))."""
        left, out = self.query_rows(queries), self._empty((len(queries), len(gallery)), np.float64)
        for low in range(0, len(gallery), _ROWS_AT_ONCE):
            block = gallery[low : low + _ROWS_AT_ONCE]
            out[:, low : low + len(block)] = left @ self.gallery_rows(block).T
        return torch.as_tensor(out)

    def score_pairs(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Score of each pair (queries[i], gallery[i]) in double precision (n,)."""
        return self._of_pairs(self._score, queries, gallery)

    def _of_pairs(
        self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], queries: np.ndarray, gallery: np.ndarray
    ) -> np.ndarray:
        out = np.empty(len(queries))
        for low in range(0, len(queries), _PAIRS_AT_ONCE):
            part = slice(low, low + _PAIRS_AT_ONCE)
            out[part] = function(_host(self.query, queries[part]), _host(self.gallery, gallery[part]))
        return out

    def slack(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """How far apart two scores near this pair's may be computed when they are equal (n,)."""
        # Each of the two scores is a sum of D products of rows that were normalised by sums of D squares.
        return 4 * (self.query.shape[1] + 8) * _UNIT_ROUNDOFF * self.magnitude(queries, gallery)


class CosineSimilarity(Similarity):
    """The cosine; a vector of zeros has cosine 0 with everything."""

    @property
    def product_width(self) -> int:
        return self.query.shape[1]

    def _prepare(self, rows: Array, left: bool, out: Array) -> None:
        xp = _module(rows)
        square = xp.einsum("nd,nd->n", rows, rows)
        if is_single(rows) and not ((square > _SQUARES[0]) & (square < _SQUARES[1])).all():
            double = rows.double() if self.on_cuda else rows.astype(np.float64)
            square = xp.einsum("nd,nd->n", double, double)
        scale = 1 / xp.where(square < _SHORTEST**2, np.inf, xp.sqrt(square))
        scale = scale.to(rows.dtype) if self.on_cuda else scale.astype(rows.dtype)
        target = out if out.dtype == rows.dtype else rows
        xp.multiply(rows, scale[:, None], out=target)
        if target is not out:
            out[:] = target

    def _score(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        squares = np.einsum("nd,nd->n", query, query), np.einsum("nd,nd->n", gallery, gallery)
        norms = [np.where(square < _SHORTEST**2, np.inf, np.sqrt(square)) for square in squares]
        return np.einsum("nd,nd->n", query, gallery) / norms[0] / norms[1]

    def magnitude(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return np.ones(len(queries))

    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return self.score_pairs(queries, gallery)


class EuclideanSimilarity(Similarity):
    """Nearness by Euclidean distance: ‖q − μ‖² − ‖q − g‖² in units of the squared largest norm.

    μ, the middle of the gallery, changes no distance and keeps the rounding of the expanded square small; the
    unit keeps float32 from overflowing. A median, unlike a mean, is not dragged away by a few outliers.
    """

    def __init__(self, query: Array, gallery: Array) -> None:
        super().__init__(query, gallery)
        sample = np.arange(0, len(gallery), max(1, len(gallery) // _CENTER_SAMPLE))
        self._center = np.median(_host(gallery, sample), axis=0)
        norms = self._norms(query), self._norms(gallery)
        self._unit = max(norm.max() for norm in norms) or 1.0
        self._query_norm, self._gallery_norm = (norm / self._unit for norm in norms)

    def _norms(self, features: Array) -> np.ndarray:
        blocks = np.split(np.arange(len(features)), range(_ROWS_AT_ONCE, len(features), _ROWS_AT_ONCE))
        return np.concatenate([np.linalg.norm(_host(features, block) - self._center, axis=1) for block in blocks])

    @property
    def product_width(self) -> int:
        return self.query.shape[1] + 1

    def _prepare(self, rows: Array, left: bool, out: Array) -> None:
        center = torch.from_numpy(self._center).to(rows.device) if self.on_cuda else self._center
        rows = (rows - center) / self._unit  # in double precision
        out[:, :-1] = 2 * rows if left else rows
        out[:, -1] = 1 if left else -_module(rows).einsum("nd,nd->n", rows, rows)

    def _score(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        from_center, apart = (query - self._center) / self._unit, (query - gallery) / self._unit
        return np.einsum("nd,nd->n", from_center, from_center) - np.einsum("nd,nd->n", apart, apart)

    def magnitude(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        # An image as near to the query as this one is at most that much longer than it.
        return (2 * self._query_norm[queries] + self._gallery_norm[gallery]) ** 2

    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return self._of_pairs(lambda query, gallery: np.linalg.norm(query - gallery, axis=1), queries, gallery)


KINDS = {"cosine": CosineSimilarity, "euclidean": EuclideanSimilarity}


def make_similarity(query_feats: Any, gallery_feats: Any, metric: str) -> Similarity:
    """Similarity of raw features (Q, D) and (G, D), tensors or arrays.

    float64 stays float64, all else becomes float32; one CUDA tensor takes both to its device.

    Raises:
        UserError: for an unknown metric, shapes that are not two-dimensional, widths that differ, and values
            that are not finite (naming the images).
    """
    if metric not in KINDS:
        raise UserError(f"TEST.TEST_METRIC '{metric}' is not a known metric; known: {', '.join(KINDS)}")
    query, gallery = same_kind(as_features(query_feats, "query"), as_features(gallery_feats, "gallery"))
    if not query.is_cuda:
        query, gallery = query.numpy(), gallery.numpy()
    check_finite(query, "query features")
    check_finite(gallery, "gallery features")
    return KINDS[metric](query, gallery)


def _module(rows: Array) -> ModuleType:
    return torch if isinstance(rows, Tensor) else np


def is_single(rows: Array) -> bool:
    """Whether an array or tensor is float32."""
    return rows.dtype in (np.float32, torch.float32)


def _take(features: Array, index: np.ndarray, dtype: type) -> Array:
    """A copy of the chosen rows in this type, where the features are."""
    if isinstance(features, np.ndarray):
        return features[index].astype(dtype, copy=False)
    rows = features[torch.from_numpy(index).to(features.device)]
    return rows.double() if dtype == np.float64 else rows


def _host(features: Array, index: np.ndarray) -> np.ndarray:
    """The chosen rows in double precision, on the host."""
    rows = _take(features, index, np.float64)
    return rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()
