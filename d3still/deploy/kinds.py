"""The kinds of index, made with FAISS: exact, or faster and smaller at a measured loss.

All compare by inner product, which for features of length 1 is the cosine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3still.deploy.extras import require
from d3still.errors import UserError

logger = logging.getLogger(__name__)

Blocks = Callable[[], Iterator[np.ndarray]]
"""Gives all features anew, in order, as float32 blocks (n, D)."""

KINDS = ("exact", "ivf", "ivfpq", "hnsw")
RECALL_AT = 10
_RECALL_QUERIES = 500
_RECALL_SEED = 2024
_LISTS_PER_ROOT = 4  # lists for N images: 4·√N, FAISS's own advice
_POINTS_PER_LIST = 39  # fewer than this to learn a centroid from, and FAISS warns
_LEARNT_FROM = 64  # features to learn a list or a code from: more cost time and bring little
_CODE_BITS = 8
_CODES = 2**_CODE_BITS
_HNSW_LINKS, _HNSW_CONSTRUCTION = 32, 80
_EFFORT_STEPS = 8  # an effort is chosen to an eighth of itself
_NO_GAIN = 0.005  # codes lose what no effort brings back: once twice the effort adds less recall, it is enough


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made.

    Attributes:
        kind: "exact" compares with every image; "ivf" only within the nearest lists; "ivfpq" so too, with
            each feature as a short code; "hnsw" follows a graph of neighbours.
        recall: recall@10 against exact search that the effort of a search is chosen for.
        code_bytes: "ivfpq": bytes of a feature's code; the width must be a multiple of it.
    """

    kind: str = "exact"
    recall: float = 0.95
    code_bytes: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"the kind of index '{self.kind}' is not known; choose {', '.join(KINDS)}")
        if not 0 < self.recall <= 1:
            raise UserError(f"the wanted recall {self.recall} must be above 0 and at most 1")

    @property
    def mergeable(self) -> bool:
        """Whether FAISS can merge parts of such an index."""
        return self.kind != "hnsw"


@dataclass(frozen=True)
class Recall:
    """Measured quality of an index: mean share of the ``at`` best images that it finds, and the effort it takes.

    ``effort`` is the number of lists or candidates looked at for a query (0: all).
    """

    value: float
    at: int
    queries: int
    images: int
    effort: int


def new_index(options: IndexOptions, width: int, count: int) -> Any:
    """An empty FAISS index for about ``count`` features of this width, yet to be trained if it needs to be.

    Raises:
        UserError: FAISS is missing, or there are too few images or too odd a width for this kind.
    """
    faiss = require("faiss", "an index")
    if options.kind == "exact":
        return faiss.IndexFlatIP(width)
    if options.kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_CONSTRUCTION
        return index
    lists = max(1, min(int(_LISTS_PER_ROOT * math.sqrt(count)), count // _POINTS_PER_LIST))
    if options.kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        _check_codes(options.code_bytes, width, count)
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(width), width, lists, options.code_bytes, _CODE_BITS, faiss.METRIC_INNER_PRODUCT
        )
    return index


def train(index: Any, blocks: Blocks, count: int) -> None:
    """Let an index learn its lists and codes from evenly spread features; nothing to do for the others."""
    if index.is_trained:
        return
    wanted = _LEARNT_FROM * max(index.nlist, _CODES)
    positions = np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))
    index.train(gather(blocks, positions))


def add(index: Any, blocks: Blocks) -> None:
    """Append all features to a trained index."""
    for block in blocks():
        index.add(np.ascontiguousarray(block, np.float32))


def gather(blocks: Blocks, positions: np.ndarray) -> np.ndarray:
    """The features at these ascending positions, (n, D)."""
    found, start = [], 0
    for block in blocks():
        low, high = np.searchsorted(positions, [start, start + len(block)])
        found.append(block[positions[low:high] - start])
        start += len(block)
    return np.ascontiguousarray(np.concatenate(found), np.float32)


def tune(index: Any, blocks: Blocks, options: IndexOptions) -> Recall | None:
    """Measure recall against exact search, raising the search's effort until it reaches the wanted value.

    Queries are images of the index, each left out of its own answers. None for an exact index, and for
    one that holds a single image.
    """
    count = index.ntotal
    if options.kind == "exact" or count < 2:
        return None
    positions = np.unique(np.linspace(0, count - 1, min(_RECALL_QUERIES, count)).astype(np.int64))
    queries, at = gather(blocks, positions), min(RECALL_AT, count - 1)
    truth = _exact_neighbours(queries, positions, blocks, at)

    def measured(effort: int) -> float:
        _set_effort(index, effort)
        return _overlap(_neighbours(index, queries, positions, at), truth)

    start, highest = (1, index.nlist) if _has_lists(index) else (at + 1, count)
    effort, value = _least_effort(measured, start, highest, options)
    _set_effort(index, effort)
    if value < options.recall:
        logger.warning(
            "recall@%d is %.3f, below the wanted %.3f; only longer codes or another kind would raise it",
            at,
            value,
            options.recall,
        )
    return Recall(round(value, 4), at, len(positions), count, effort)


def _least_effort(
    measured: Callable[[int], float], start: int, highest: int, options: IndexOptions
) -> tuple[int, float]:
    """The least effort that reaches the wanted recall, to an eighth, and its recall; or what comes nearest."""
    low, effort = 0, min(start, highest)
    value, former = measured(effort), -1.0
    while value < options.recall and effort < highest:  # twice as much until it is reached
        if options.kind == "ivfpq" and value - former < _NO_GAIN:
            return effort, value
        low, effort, former = effort, min(2 * effort, highest), value
        value = measured(effort)
    while value >= options.recall and low and effort - low > max(1, effort // _EFFORT_STEPS):  # then between the two
        middle = (low + effort) // 2
        found = measured(middle)
        if found >= options.recall:
            effort, value = middle, found
        else:
            low = middle
    return effort, value


def _check_codes(code_bytes: int, width: int, count: int) -> None:
    if code_bytes < 1 or width % code_bytes:
        raise UserError(f"codes of {code_bytes} bytes do not divide features of width {width}; choose 32, 64 or 128")
    if count < _CODES:
        raise UserError(f"an ivfpq index learns its codes from at least {_CODES} images, not {count}; use exact")


def _has_lists(index: Any) -> bool:
    return hasattr(index, "nlist")


def _set_effort(index: Any, effort: int) -> None:
    if _has_lists(index):
        index.nprobe = effort
    else:
        index.hnsw.efSearch = effort


def _neighbours(index: Any, queries: np.ndarray, own: np.ndarray, at: int) -> np.ndarray:
    """The index's answer (Q, at) without the query itself."""
    _, found = index.search(queries, at + 1)
    itself = found == own[:, None]
    itself[~itself.any(axis=1), -1] = True  # it was not found: the last one goes instead
    return found[~itself].reshape(len(queries), at)


def _exact_neighbours(queries: np.ndarray, own: np.ndarray, blocks: Blocks, at: int) -> np.ndarray:
    """The ``at`` best of all features for each query (Q, at), itself excepted; one block in memory at a time."""
    scores = np.full((len(queries), at), -np.inf, np.float32)
    found = np.full((len(queries), at), -1, np.int64)
    start = 0
    for block in blocks():
        both = np.concatenate([scores, queries @ block.T], axis=1)  # the best so far, then this block
        inside = np.flatnonzero((own >= start) & (own < start + len(block)))
        both[inside, at + own[inside] - start] = -np.inf
        best = np.argpartition(-both, at - 1, axis=1)[:, :at]
        scores = np.take_along_axis(both, best, axis=1)
        former = np.take_along_axis(found, np.minimum(best, at - 1), axis=1)
        found = np.where(best < at, former, start + best - at)
        start += len(block)
    return found


def _overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))
