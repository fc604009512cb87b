"""Nearness of query–gallery pairs: fast as a product with a known error, and in double precision pair by pair.

The cosine needs no code of its own: of unit vectors, cosine = 1 − ‖q − g‖² / 2, so that both metrics rank by
−‖q − g‖² / 2, of unit vectors or of the features as they are. That number is a pair's *score*. `Similarity.exact`
evaluates it in double precision from the differences q − g; `Similarity.product` does so for many pairs at once,
as (q − μ)·(g − μ) − ‖g − μ‖² / 2, and `Similarity.bands` bounds how far the two can lie apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from d3still.errors import UserError

METRICS = ("cosine", "euclidean")

_ROWS_AT_ONCE = 128  # few enough that double rows in the making stay in the cache
_CENTER_SAMPLE = 300  # gallery images that the middle is taken of, about
_EXPONENTS = 400  # powers of two between which double precision squares without loss
_ROUNDOFF = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}
_EXTRA_ROUNDINGS = 16  # of a product's inputs, generously
_UNDERFLOW = 2.0**-100  # far more than all that a float32 product of vectors no longer than 2 can lose below 2⁻¹²⁶
_TIE = 2.0**-49  # of a score: what its own roundings in double precision come to
_ROUNDING = 2.0**-22  # of two given distances, of the largest's size at most, to float32
_TIE_OF_COSINES = 2.0**-52  # the spacing of doubles at 1


class Similarity:
    """Scores between query and gallery features, −‖q − g‖² / 2 in units that keep float32 in range.

    Args:
        query, gallery: (Q, D), (G, D) as `comparable` gives them.
        metric: "cosine" or "euclidean". A vector of zeros has cosine 0 with everything.
        columns: (N,) the gallery images to score, in the order of the product's columns.

    Raises:
        UserError: for an unknown metric.
    """

    def __init__(self, query: Tensor, gallery: Tensor, metric: str, columns: np.ndarray) -> None:
        if metric not in METRICS:
            raise UserError(f"TEST.TEST_METRIC '{metric}' is not a known metric; known: {', '.join(METRICS)}")
        self._cosine, self._columns = metric == "cosine", columns
        sides = [side.cpu().numpy() for side in (query, gallery)]
        exponents = _exponents(sides, self._cosine)
        self._unit = int(exponents[0][0])
        for place, exponent in enumerate(exponents):
            if np.abs(exponent).max() > _EXPONENTS:
                sides[place], exponents[place] = np.ldexp(sides[place], -exponent[:, None]), np.zeros_like(exponent)
        self._features = sides
        self._scale = [
            _inverse_norms(side) if self._cosine else np.ldexp(1.0, -exponent)
            for side, exponent in zip(sides, exponents, strict=True)
        ]
        self._blank = self._scale[1] == 0  # as unit vectors of a dimension of their own they have cosine 0
        self._any_blank = self._blank.any()
        sample = columns[:: max(1, len(columns) // _CENTER_SAMPLE)]
        self._center = np.median(self._rows(1, sample), axis=0)  # a mean is dragged away by outliers
        # A product of CUDA tensors runs there in double precision, which no setting (TF32, autocast) makes coarser.
        dtype = np.dtype(np.float64 if query.is_cuda else np.float32)
        left, self._query_norm = self._factor(0, np.arange(len(query)), dtype)
        right, self._gallery_norm = self._factor(1, columns, dtype)
        self._offset = np.median(self._gallery_norm) ** 2 / 2  # taken from every image: the smaller, the less it errs
        last = self._offset - self._gallery_norm**2 / 2
        right[:, -1], self._widest = last, np.abs(last).max()
        self._left, self._right = (torch.from_numpy(factor).to(query.device) for factor in (left, right))
        terms = left.shape[1] + _EXTRA_ROUNDINGS
        self._gamma = _gamma(terms, _ROUNDOFF[dtype]) + _ROUNDOFF[np.dtype(np.float32)]  # the result is float32
        self._gamma_of_exact = 2 * _gamma(terms, _ROUNDOFF[np.dtype(np.float64)])

    def product(self, queries: np.ndarray, out: np.ndarray) -> None:
        """Write scores plus a number of each query's own to ``out`` (n, N), float32."""
        if self._right.is_cuda:
            left = self._left[torch.from_numpy(queries).to(self._left.device)]
            out[:] = (left @ self._right.T).cpu().numpy()
        else:  # numpy's product ignores autocast and torch's choice of precision, as an exact ranking must
            np.matmul(self._left.numpy()[queries], self._right.numpy().T, out=out)

    def bands(self, queries: np.ndarray, columns: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What two scores of a product may differ by although they tie, and the error of that difference (n,).

        ``level`` holds the product's score of each pair. The error holds against every other score of the same
        query: a sum of products, in any order, errs by at most γ (`_gamma`) times the sum of their sizes, which the
        vectors' lengths bound. An image longer than ``reach`` is farther from the query than this one beyond any
        error. ``of_exact`` is the exact score's own.
        """
        query, image = self._query_norm[queries], self._gallery_norm[columns]
        reach = np.minimum(self._gallery_norm.max(), 2 * (2 * query + image))
        last = np.minimum(np.maximum(reach**2 / 2, self._offset), self._widest)  # of the product's last dimension
        of_exact = self._gamma_of_exact * (query**2 + reach**2)
        error = 2 * (self._gamma * (query * reach + last) + of_exact + _UNDERFLOW)
        return self.tie(level - self._own(queries)), error

    def as_product(self, queries: np.ndarray, exact: np.ndarray) -> np.ndarray:
        """What a product without error would give for these exact scores (n,)."""
        return exact + self._own(queries)

    def _own(self, queries: np.ndarray) -> np.ndarray:
        return self._query_norm[queries] ** 2 / 2 + self._offset

    def exact(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Score of each pair in double precision (n,): a sum over the dimensions in one fixed order."""
        out = np.empty(len(queries))
        distinct, which = np.unique(queries, return_inverse=True)
        left, images = self._rows(0, distinct), self._columns[columns]
        for low in range(0, len(out), _ROWS_AT_ONCE):
            part = slice(low, low + _ROWS_AT_ONCE)
            apart = self._rows(1, images[part])
            apart -= left[which[part]]
            out[part] = np.einsum("nd,nd->n", apart, apart) / -2
        return out

    def tie(self, score: np.ndarray) -> np.ndarray:
        """How much less than a hit's exact score a miss's may be, and tie with it."""
        return _TIE * np.abs(score) + (_TIE_OF_COSINES if self._cosine else 0)

    def shown(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The number to show for each pair (n,): cosine or Euclidean distance."""
        if not self._cosine:
            return np.ldexp(np.sqrt(-2 * self.exact(queries, columns)), self._unit)
        return np.einsum("nd,nd->n", self._rows(0, queries), self._rows(1, self._columns[columns]))

    def _rows(self, side: int, index: np.ndarray) -> np.ndarray:
        """The vectors compared, in double precision: queries (side 0) or gallery images (side 1)."""
        rows = self._features[side][index].astype(np.float64)
        rows *= self._scale[side][index, None]
        if self._any_blank:
            rows = np.column_stack([rows, self._blank[index] if side else np.zeros(len(index))])
        return rows

    def _factor(self, side: int, index: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """A factor of the product (n, D′ + 1), and the lengths of its vectors from the middle (n,)."""
        out = np.empty((len(index), len(self._center) + 1), dtype)
        square = np.empty(len(index))
        for low in range(0, len(index), _ROWS_AT_ONCE):
            part = slice(low, low + _ROWS_AT_ONCE)
            rows = self._rows(side, index[part])
            rows -= self._center
            square[part] = np.einsum("nd,nd->n", rows, rows)
            out[part, :-1] = rows
        out[:, -1] = 1
        return out, np.sqrt(square)


class Distances:
    """What `Similarity` gives, for scores that are the negatives of given distances (Q, G), and exact as they are."""

    def __init__(self, distances: np.ndarray, columns: np.ndarray) -> None:
        self.distances, self.columns = distances, columns
        self._unit = max(-float(distances.min()), float(distances.max())) or 1.0  # keeps float32 in range

    def product(self, queries: np.ndarray, out: np.ndarray) -> None:
        out[:] = self.distances[np.ix_(queries, self.columns)] / -self._unit

    def bands(self, queries: np.ndarray, columns: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(level)), np.full(len(level), _ROUNDING)

    def exact(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return -self.shown(queries, columns)

    def as_product(self, queries: np.ndarray, exact: np.ndarray) -> np.ndarray:
        return exact / self._unit

    def tie(self, score: np.ndarray) -> np.ndarray:
        return np.zeros(len(score))

    def shown(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.distances[queries, self.columns[columns]].astype(np.float64)


Scores = Similarity | Distances


def _gamma(terms: int, roundoff: float) -> float:
    """Relative error of a sum of so many products, in whatever order: n·u / (1 − n·u)."""
    return terms * roundoff / (1 - terms * roundoff)


def _exponents(sides: list[np.ndarray], cosine: bool) -> list[np.ndarray]:
    """Powers of two to divide each row by (n,), so that double precision squares it without loss.

    For the Euclidean distance one for all, in whose unit no two vectors are farther apart than 1.
    """
    peaks = [np.maximum(side.max(axis=1), -side.min(axis=1)) for side in sides]
    found = [np.frexp(peak)[1] for peak in peaks]
    if cosine:
        return [np.where(np.abs(exponent) > _EXPONENTS, exponent, 0) for exponent in found]
    unit = max(exponent.max() for exponent in found) + int(np.ceil(np.log2(2 * np.sqrt(sides[0].shape[1]))))
    return [np.full(len(side), unit) for side in sides]


def _inverse_norms(features: np.ndarray) -> np.ndarray:
    """1 / ‖row‖ in double precision (n,), and 0 for a row of zeros."""
    square = np.empty(len(features))
    for low in range(0, len(features), _ROWS_AT_ONCE):
        rows = features[low : low + _ROWS_AT_ONCE].astype(np.float64)
        square[low : low + _ROWS_AT_ONCE] = np.einsum("nd,nd->n", rows, rows)
    return np.divide(1, np.sqrt(square), out=np.zeros(len(features)), where=square > 0)
