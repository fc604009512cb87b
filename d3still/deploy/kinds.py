"""The kinds of index, made with FAISS: exact, or faster and smaller at a measured loss.

All compare by inner product, which for features of length 1 is the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3still.deploy.extras import require
from d3still.errors import UserError

Blocks = Callable[[], Iterator[np.ndarray]]
"""Gives all features anew, in order, as float32 blocks (n, D)."""

KINDS = ("exact", "ivf", "ivfpq", "hnsw")
_LISTS_PER_ROOT = 4  # lists for N images: 4·√N, FAISS's own advice
_POINTS_PER_LIST = 39  # fewer than this to learn a centroid from, and FAISS warns
_LEARNT_FROM = 64  # features to learn a list or a code from: more cost time and bring little
_CODE_BITS = 8
_CODES = 2**_CODE_BITS
_HNSW_LINKS, _HNSW_CONSTRUCTION = 32, 80
_TOGETHER = 8  # queries that one matrix product answers faster than passes over the features


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


def remove(index: Any, rows: np.ndarray) -> Any:
    """An index without the features at these ascending rows; those behind them move up.

    FAISS itself moves up the rows of a flat index, leaves gaps in the numbers that lists hold, and removes nothing
    from a graph of neighbours, which is made anew.
    """
    faiss = require("faiss", "an index")
    kept = np.setdiff1d(np.arange(index.ntotal), rows, assume_unique=True)
    if hasattr(index, "hnsw"):
        rest = stored_features(index)[kept]
        effort = index.hnsw.efSearch
        index = new_index(IndexOptions("hnsw"), index.d, len(kept))
        index.hnsw.efSearch = effort
        add(index, lambda: iter([rest] if len(rest) else []))
        return index
    index.remove_ids(np.ascontiguousarray(rows, np.int64))
    for number in range(index.nlist if has_lists(index) else 0):
        length = index.invlists.list_size(number)
        if length:
            numbers = faiss.rev_swig_ptr(index.invlists.get_ids(number), length)  # a view: the list itself
            numbers[:] = np.searchsorted(kept, numbers)
    return index


def stored_features(index: Any) -> np.ndarray:
    """Features (N, D) in the order of their numbers; FAISS gives tensors once its torch_utils is imported."""
    return np.asarray(index.reconstruct_n(0, index.ntotal))


def without(index: Any, rows: np.ndarray) -> Any:
    """FAISS's parameters of a search that passes over these rows, with the index's own effort."""
    faiss = require("faiss", "an index")
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64)))
    if has_lists(index):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    if hasattr(index, "hnsw"):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def answer_few_together(width: int) -> None:
    """Let FAISS answer from eight queries on by one matrix product, in this process: a tenth of the time for 64.

    By itself it takes them one by one up to 128,000 numbers (250 queries of width 512), and older versions, which
    count queries, up to 20: that stays. A score may differ in its last bits by how many are asked together.
    """
    settings = require("faiss", "an index").cvar
    settings.distance_compute_blas_threshold = min(settings.distance_compute_blas_threshold, _TOGETHER * width)


def has_lists(index: Any) -> bool:
    """Whether a search looks at some of many lists."""
    return hasattr(index, "nlist")


def set_effort(index: Any, effort: int) -> None:
    """How many lists or candidates a search looks at."""
    if has_lists(index):
        index.nprobe = effort
    else:
        index.hnsw.efSearch = effort


def gather(blocks: Blocks, positions: np.ndarray) -> np.ndarray:
    """The features at these ascending positions, (n, D)."""
    found, start = [], 0
    for block in blocks():
        low, high = np.searchsorted(positions, [start, start + len(block)])
        found.append(block[positions[low:high] - start])
        start += len(block)
    return np.ascontiguousarray(np.concatenate(found), np.float32)


def _check_codes(code_bytes: int, width: int, count: int) -> None:
    if code_bytes < 1 or width % code_bytes:
        raise UserError(f"codes of {code_bytes} bytes do not divide features of width {width}; choose 32, 64 or 128")
    if count < _CODES:
        raise UserError(f"an ivfpq index learns its codes from at least {_CODES} images, not {count}; use exact")


