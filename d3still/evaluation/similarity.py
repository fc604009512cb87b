"""Scores of query–gallery pairs from features: in blocks as a product of prepared rows, or pair by pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.evaluation.arrays import as_features, check_finite, same_kind

_SHORTEST = torch.finfo(torch.float32).tiny  # a shorter vector has no direction: cosine 0 with everything
_SQUARABLE = (1e-15, 1e15)  # norms whose squares float32 holds
_UNIT_ROUNDOFF = 2.0**-53  # of double precision
_ROWS_AT_ONCE = 1024  # bounds the memory of rows made in double precision
_CENTER_SAMPLE = 1000  # gallery images that the middle is taken of, about
_PAIRS_AT_ONCE = 256  # small enough that the gathered rows stay in the cache


class Similarity(ABC):
    """Scores between query and gallery features, higher is nearer.

    Subclasses say how rows are prepared so that ``query_rows(…) @ gallery_rows(…).T`` holds the scores.

    Args:
        query, gallery: (Q, D), (G, D) finite float32 or float64 on one device.
    """

    def __init__(self, query: Tensor, gallery: Tensor) -> None:
        self.query, self.gallery = query, gallery

    @abstractmethod
    def _prepare(self, rows: Tensor, dtype: torch.dtype, left: bool) -> Tensor:
        """Rows of one factor of the product; may overwrite ``rows``."""

    @abstractmethod
    def _score(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Scores of pairs of double-precision rows (n,)."""

    @abstractmethod
    def magnitude(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Size of the numbers behind each pair's score (n,): what its rounding error is proportional to."""

    @abstractmethod
    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """The number to show for each pair (n,): cosine or Euclidean distance."""

    def query_rows(self, index: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Left factor of the product for these queries (n, D′)."""
        return self._rows(self.query, index, dtype, left=True)

    def gallery_rows(self, index: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Right factor of the product for these gallery images (n, D′)."""
        return self._rows(self.gallery, index, dtype, left=False)

    def _rows(self, features: Tensor, index: np.ndarray, dtype: torch.dtype, left: bool) -> Tensor:
        out = None
        for low in range(0, len(index), _ROWS_AT_ONCE):
            block = torch.from_numpy(index[low : low + _ROWS_AT_ONCE]).to(features.device)
            rows = self._prepare(features.index_select(0, block), dtype, left)
            out = rows.new_empty((len(index), rows.shape[1])) if out is None else out
            out[low : low + len(rows)] = rows
        return out

    def score_rows(self, queries: np.ndarray, gallery: np.ndarray) -> Tensor:
        """Scores in double precision (len(queries), len(gallery))."""
        left = self.query_rows(queries, torch.float64)
        out = left.new_empty((len(queries), len(gallery)))
        for low in range(0, len(gallery), _ROWS_AT_ONCE):
            block = gallery[low : low + _ROWS_AT_ONCE]
            out[:, low : low + len(block)] = left @ self.gallery_rows(block, torch.float64).T
        return out

    def score_pairs(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Score of each pair (queries[i], gallery[i]) in double precision (n,)."""
        scores = np.empty(len(queries))
        for low in range(0, len(queries), _PAIRS_AT_ONCE):
            part = slice(low, low + _PAIRS_AT_ONCE)
            scores[part] = self._score(_take(self.query, queries[part]), _take(self.gallery, gallery[part]))
        return scores

    def slack(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """How far apart two scores near this pair's may be computed when they are equal (n,)."""
        # Each of the two scores is a sum of D products of rows that were normalised by sums of D squares.
        return 4 * (self.query.shape[1] + 8) * _UNIT_ROUNDOFF * self.magnitude(queries, gallery)


class CosineSimilarity(Similarity):
    """The cosine; a vector of zeros has cosine 0 with everything."""

    def _prepare(self, rows: Tensor, dtype: torch.dtype, left: bool) -> Tensor:
        rows = rows.to(torch.promote_types(rows.dtype, dtype))
        norm = torch.linalg.vector_norm(rows, dim=1)
        if rows.dtype != torch.float64 and not ((norm > _SQUARABLE[0]) & (norm < _SQUARABLE[1])).all():
            norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        norm = norm.masked_fill(norm < _SHORTEST, torch.inf)  # dividing by it gives zeros
        return rows.mul_(norm.reciprocal().to(rows.dtype)[:, None]).to(dtype)

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

    def __init__(self, query: Tensor, gallery: Tensor) -> None:
        super().__init__(query, gallery)
        self._center = gallery[:: max(1, len(gallery) // _CENTER_SAMPLE)].median(dim=0).values.double()
        self._unit = 1.0
        norms = self._norms(query), self._norms(gallery)
        self._unit = float(max(norm.max() for norm in norms)) or 1.0
        self._query_norm, self._gallery_norm = (norm / self._unit for norm in norms)

    def _norms(self, features: Tensor) -> Tensor:
        blocks = features.split(_ROWS_AT_ONCE)
        return torch.cat([torch.linalg.vector_norm(block - self._center, dim=1) for block in blocks])

    def _prepare(self, rows: Tensor, dtype: torch.dtype, left: bool) -> Tensor:
        rows = (rows - self._center) / self._unit
        square = rows.square().sum(1, keepdim=True)
        parts = [2 * rows, torch.ones_like(square)] if left else [rows, -square]
        return torch.cat(parts, dim=1).to(dtype)

    def _score(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        center = self._center.cpu().numpy()
        from_center, apart = (query - center) / self._unit, (query - gallery) / self._unit
        return np.einsum("nd,nd->n", from_center, from_center) - np.einsum("nd,nd->n", apart, apart)

    def magnitude(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        # An image as near to the query as this one is at most that much longer than it.
        return (2 * _take(self._query_norm, queries) + _take(self._gallery_norm, gallery)) ** 2

    def shown(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        distance = np.empty(len(queries))
        for low in range(0, len(queries), _PAIRS_AT_ONCE):
            part = slice(low, low + _PAIRS_AT_ONCE)
            apart = _take(self.query, queries[part]) - _take(self.gallery, gallery[part])
            distance[part] = np.linalg.norm(apart, axis=1)
        return distance


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
    check_finite(query, "query features")
    check_finite(gallery, "gallery features")
    return KINDS[metric](query, gallery)


def _take(values: Tensor, index: np.ndarray) -> np.ndarray:
    """Chosen rows in double precision, on the host."""
    if values.is_cuda:
        return values[torch.from_numpy(index).to(values.device)].double().cpu().numpy()
    return values.numpy()[index].astype(np.float64, copy=False)  # torch's own threads would fight the caller's
