"""k-reciprocal re-ranking on sparse matrices: neighbours of neighbours correct the distances.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, in the published
variant of the asymmetric-retrieval code. Only each image's nearest ranks are kept, so that memory grows with
the number of images and not with its square.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from d3still.errors import UserError
from d3still.evaluation.arrays import at_least, comparable
from d3still.evaluation.labels import spans
from d3still.memory import available_memory

_BLOCK = 1 << 24  # scores held at once
_OVERLAP_ROWS = 1024  # images whose overlaps with all others are held at once
_SHARED_ENTRIES = 1 << 20  # weights compared at once by one worker
_MEMBERS = 4  # images of an expanded set over k1 + 1, generously (to estimate memory)
_SPREAD = 4  # how many more images hold a weight after averaging over k2 ranks, generously
_ENTRY_BYTES = 8  # a float32 and an int32
_GIB = 1 << 30


@torch.no_grad()
def k_reciprocal_distances(
    query_feats: Any, gallery_feats: Any, k1: int = 60, k2: int = 10, lambda_value: float = 0.3
) -> np.ndarray:
    """Distances from each query to each gallery image, re-ranked by k-reciprocal neighbours.

    All images, queries and gallery together, are compared by d = squared Euclidean distance of the
    normalised features, divided by the largest of the image's own row. R(i, k) are those of the first k + 1
    ranks of i, itself included, that have i among their own first k + 1. R(i, k1) is enlarged by every
    R(j, round(k1 / 2)) of a member j that lies in it by more than two thirds. An image's weights are exp(−d)
    over that set, summing to 1, then averaged over its first k2 ranks. With m the sum of the smaller weights
    of two images, the result is (1 − λ)·(1 − m / (2 − m)) + λ·d. An image is its own first rank; which of two
    equally near images ranks first is open.

    Args:
        query_feats, gallery_feats: (Q, D), (G, D) raw features, tensors or arrays. A CUDA tensor makes the
            neighbour search run there.
        k1, k2: numbers of neighbours, at least 1; more than there are images means all of them.
        lambda_value: λ, weight of the original distance, 0 to 1.

    Returns:
        (Q, G) array, float64 for float64 features and float32 otherwise; see `evaluate_distances`.

    Raises:
        UserError: for parameters out of range, features that `evaluate_ranking` would refuse, and when the
            memory needed, which is estimated first, is not there.
    """
    k1, k2 = (at_least(1, k, f"TEST.RE_RANKING_PARAMETER: {name}") for k, name in ((k1, "k1"), (k2, "k2")))
    if not 0 <= lambda_value <= 1:
        raise UserError(f"TEST.RE_RANKING_PARAMETER: lambda must lie between 0 and 1, not {lambda_value!r}")
    query, gallery = comparable(query_feats, gallery_feats)
    if len(query) == 0 or len(gallery) == 0:
        raise UserError(f"nothing to re-rank: {len(query)} queries, {len(gallery)} gallery images")
    _require_memory(
        memory_needed(*query.shape[:1], *gallery.shape, k1, k2, query.element_size()),
        f"re-ranking {len(query)} queries and {len(gallery)} gallery images with k1 = {k1}",
    )
    images, kept = _normalised(query, gallery), min(max(k1 + 1, k2), len(query) + len(gallery))
    ranks, farthest, distance = _nearest(images, kept, len(query))
    weights = _weights(images.cpu().numpy(), ranks, farthest, k1)
    if k2 > 1:
        weights = _ones(ranks[:, :k2]).astype(np.float32) @ weights / min(k2, kept)
    _blend(distance, weights.tocsr(), lambda_value)
    return distance


def memory_needed(num_queries: int, num_gallery: int, width: int, k1: int, k2: int, itemsize: int = 4) -> int:
    """Bytes that `k_reciprocal_distances` takes at its peak, beyond the features given, roughly."""
    images = num_queries + num_gallery
    kept = min(max(k1 + 1, k2), images)
    result = num_queries * num_gallery * itemsize
    features = images * width * itemsize
    ranks = images * kept * (4 + 8 + itemsize)  # int32, and torch's own int64 and values
    members = min(images, _MEMBERS * kept)
    weights = images * members * _ENTRY_BYTES * (1 + 2 * min(k2, _SPREAD))  # averaged, and its transpose
    blocks = 3 * _BLOCK * itemsize + _OVERLAP_ROWS * kept**2 * _ENTRY_BYTES
    return result + features + ranks + weights + blocks


def _require_memory(needed: int, what: str) -> None:
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs about {needed / _GIB:.1f} GiB of memory and {free / _GIB:.1f} GiB are free: "
            "use fewer images, or set TEST.RE_RANKING: False"
        )


def _normalised(query: Tensor, gallery: Tensor) -> Tensor:
    """Queries, then gallery, as unit vectors (N, D), in their own type; a row of zeros stays one."""
    images = torch.cat([query, gallery])
    peak = images.abs().amax(dim=1, keepdim=True)
    images = images / torch.where(peak == 0, 1, peak)  # so that squares neither vanish nor overflow
    norm = torch.linalg.vector_norm(images, dim=1, keepdim=True, dtype=torch.float64)
    return images.div_(torch.where(norm == 0, 1, norm))


def _nearest(images: Tensor, kept: int, num_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First ranks of every image (N, kept), its largest squared distance (N,), and d from queries to gallery."""
    total = len(images)
    ranks, farthest = np.empty((total, kept), dtype=np.int32), np.empty(total, dtype=np.float64)
    distance = np.empty((num_queries, total - num_queries), dtype=f"f{images.element_size()}")
    step = max(1, _BLOCK // total)
    for low in range(0, total, step):
        cosine = _product(images[low : low + step], images)
        rows = torch.arange(len(cosine), device=cosine.device)
        square = (2 - 2 * cosine.amin(dim=1).double()).clamp_(min=0)
        place = slice(low, low + len(cosine))
        farthest[place] = square.cpu().numpy()
        if low < num_queries:
            queries = cosine[: num_queries - low, num_queries:]
            scale = square[: len(queries), None].to(queries.dtype)
            distance[low : low + len(queries)] = _divided((2 - 2 * queries).clamp_(min=0), scale).cpu().numpy()
        cosine[rows, rows + low] = torch.inf  # an image is its own nearest, also among duplicates
        ranks[place] = cosine.topk(kept, dim=1).indices.cpu().numpy()
    return ranks, farthest, distance


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left · rightᵀ at the precision of its type, whatever autocast and torch's settings say."""
    if left.is_cuda:
        return (left.double() @ right.double().T).to(left.dtype)
    return torch.from_numpy(left.numpy() @ right.numpy().T)


def _divided(distance: Any, scale: Any) -> Any:
    """``distance / scale``, and zero where every distance is zero."""
    return distance / (scale + (scale == 0))


def _ones(columns: np.ndarray) -> sparse.csr_array:
    """Square 0/1 matrix with ones at these columns of each row."""
    total, count = columns.shape
    pointer = np.arange(total + 1) * count
    ones = np.ones(columns.size, dtype=np.int32)
    return sparse.csr_array((ones, np.ascontiguousarray(columns).ravel(), pointer), shape=(total, total))


def _reciprocal(ranks: np.ndarray, k: int) -> sparse.csr_array:
    """R(·, k) as a 0/1 matrix."""
    near = _ones(ranks[:, : k + 1])
    return near.multiply(near.T.tocsr()).tocsr()


def _members(ranks: np.ndarray, k1: int) -> sparse.csr_array:
    """The enlarged reciprocal sets; the numbers stored mean nothing."""
    core, half = _reciprocal(ranks, k1), _reciprocal(ranks, round(k1 / 2))
    half_size, half_transposed = half.sum(axis=1), half.T.tocsr()
    parts = []
    for low in range(0, core.shape[0], _OVERLAP_ROWS):
        rows = core[low : low + _OVERLAP_ROWS]
        overlap = (rows @ half_transposed).multiply(rows).tocsr()
        overlap.data = (3 * overlap.data > 2 * half_size[overlap.indices]).astype(np.int32)
        parts.append(rows + overlap @ half)
    members = sparse.vstack(parts, format="csr")
    members.eliminate_zeros()
    return members


def _weights(images: np.ndarray, ranks: np.ndarray, farthest: np.ndarray, k1: int) -> sparse.csr_array:
    """exp(−d) over each image's members, summing to 1."""
    members = _members(ranks, k1)
    count = np.diff(members.indptr)
    row, column = np.repeat(np.arange(len(images)), count), members.indices
    cosine = np.empty(len(row))
    step = max(1, _BLOCK // 64 // images.shape[1])
    for low in range(0, len(row), step):
        part = slice(low, low + step)
        cosine[part] = np.einsum("nd,nd->n", images[row[part]], images[column[part]])
    square = np.maximum(2 - 2 * cosine, 0)
    square[row == column] = 0
    weight = np.exp(-_divided(square, farthest[row]))
    weight /= np.repeat(np.add.reduceat(weight, members.indptr[:-1]), count)
    return sparse.csr_array((weight.astype(np.float32), column, members.indptr), shape=members.shape)


def _blend(distance: np.ndarray, weights: sparse.csr_array, lambda_value: float) -> None:
    """Mix the Jaccard distances into ``distance`` (Q, G) in place."""
    num_queries = len(distance)
    holders = weights[num_queries:].T.tocsr()  # row c: the gallery images with weight on image c
    queries = weights[:num_queries]
    held = np.diff(holders.indptr)
    work = np.concatenate([[0], np.cumsum(held[queries.indices])])[queries.indptr]  # entries up to each query
    cuts = np.searchsorted(work, np.arange(0, work[-1], _SHARED_ENTRIES))
    cuts = np.unique(np.append(cuts, [0, num_queries]))

    def mix(low: int, high: int) -> None:
        shared = _shared(queries[low:high], holders).astype(distance.dtype)
        jaccard = 1 - shared / (2 - shared)
        distance[low:high] = (1 - lambda_value) * jaccard + lambda_value * distance[low:high]

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        list(workers.map(mix, cuts[:-1], cuts[1:]))


def _shared(queries: sparse.csr_array, holders: sparse.csr_array) -> np.ndarray:
    """Sum over all images of the smaller of the two weights, for each query and gallery image."""
    shape = queries.shape[0], holders.shape[1]
    entry, place = spans(holders.indptr[queries.indices], holders.indptr[queries.indices + 1])
    row = np.repeat(np.arange(shape[0]), np.diff(queries.indptr))
    smaller = np.minimum(queries.data[entry], holders.data[place])
    flat = row[entry] * shape[1] + holders.indices[place]
    return np.bincount(flat, weights=smaller, minlength=shape[0] * shape[1]).reshape(shape)
