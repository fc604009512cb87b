"""The kinds of index, made with FAISS: exact, or faster and smaller at a measured loss.

All compare by inner product, which for features of length 1 is the cosine.

Queries come from another network than the gallery's features, and lie elsewhere: an index that finds 0.997 of the
neighbours of its own features may find 0.9 of a query network's. So recall is measured with what will be asked,
features of the query network, and with images that the gallery does not hold, where there are any.
"""

from __future__ import annotations

import filecmp
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from d3still.deploy.embedder import Embedder, embed_images
from d3still.deploy.listing import GalleryImage, list_images, run_dataset, stamp_of
from d3still.errors import UserError, require

logger = logging.getLogger(__name__)

T = TypeVar("T")
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
RECALL_AT = 10
QUERIES = 500  # at most so many are measured with
_COMPARED = 4 * QUERIES  # query images whose content is compared with the gallery's
_OWN = "images of the gallery, each left out of its own answers"
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
        size = options.code_bytes
        if size < 1 or width % size:
            raise UserError(f"codes of {size} bytes do not divide features of width {width}; choose 32, 64 or 128")
        if count < _CODES:
            raise UserError(f"an ivfpq index learns its codes from at least {_CODES} images, not {count}; use exact")
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, size, _CODE_BITS, faiss.METRIC_INNER_PRODUCT)
    return index


def train(index: Any, blocks: Blocks, count: int) -> None:
    """Let an index learn its lists and codes from evenly spread features; nothing to do for the others."""
    if index.is_trained:
        return
    index.train(gather(blocks, _evenly(count, _LEARNT_FROM * max(index.nlist, _CODES))))


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


class Queries(NamedTuple):
    """What recall is measured with.

    Attributes:
        features: (Q, D), of length 1.
        own: (Q,), the gallery's row that each is an image of, to be left out of its answers; None where the
            gallery holds none of them.
        source: what they are, for whoever reads the number.
    """

    features: np.ndarray
    own: np.ndarray | None
    source: str


@dataclass(frozen=True)
class Recall:
    """Measured quality of an index: mean share of the ``at`` best images that it finds, and the effort it takes.

    ``effort`` is the number of lists or candidates looked at for a query (0: all); ``measured_with`` says which
    queries asked.
    """

    value: float
    at: int
    queries: int
    images: int
    effort: int
    measured_with: str


def held_out(
    embedder: Embedder, gallery: Sequence[GalleryImage], images: str | Path | Iterable[Any] | None
) -> list[GalleryImage]:
    """Images to ask with that the gallery does not hold, not even under another name; none where none are known.

    Args:
        embedder: of the gallery network.
        gallery: what is indexed.
        images: query images as `list_images` takes them; None = the queries of the run's own dataset, where
            the gallery is the run's.

    Raises:
        UserError: the images that were named cannot be listed, or the gallery holds all of them.
    """
    listed = _run_queries(embedder, gallery) if images is None else list_images(images)
    held = {(image.path, image.box) for image in gallery}
    others = _spread([image for image in listed if (image.path, image.box) not in held], _COMPARED)
    by_size: dict[int, list[GalleryImage]] = defaultdict(list)
    for image in gallery if others else ():
        by_size[stamp_of(image.path)[0]].append(image)
    found = [image for image in others if not any(_same(image, other) for other in by_size[stamp_of(image.path)[0]])]
    if images is not None and not found:
        raise UserError(f"{images}: the gallery holds all of these images; name others as --queries")
    return _spread(found, QUERIES)


def recall_queries(
    embedder: Embedder, gallery: Sequence[GalleryImage], images: Sequence[GalleryImage], network: Embedder | None
) -> Queries | None:
    """Features of ``images``, or of gallery images where there are none of these, by the query network.

    Args:
        embedder: of the gallery network.
        gallery: the index's images.
        images: what `held_out` gave.
        network: the query network; None = that of the embedder's own file.

    Returns:
        None where the gallery's own features are all that there is.
    """
    if network is None and isinstance(embedder, Embedder):
        network = embedder.query_network()
    if images:
        asking = network or embedder
        rows, features = _embedded(asking, images)
        if rows:
            return Queries(features, None, f"{len(rows)} images that the gallery does not hold, {asking.description}")
    if network is None:
        return None
    rows = _evenly(len(gallery), QUERIES)
    places, features = _embedded(network, [gallery[row] for row in rows])
    own = rows[places]
    return Queries(features, own, f"{len(own)} {_OWN}, {network.description}") if places else None


def tune(index: Any, blocks: Blocks, options: IndexOptions, queries: Queries | None = None) -> Recall | None:
    """Measure recall against exact search, raising the search's effort until it reaches the wanted value.

    Args:
        index: holds all features.
        blocks: all features.
        options: the kind of index and the wanted recall.
        queries: what to ask with; None = the gallery's own features.

    Returns:
        None for an exact index, and for one that holds nothing to be found.
    """
    count = index.ntotal
    queries = queries or _own_queries(blocks, count)
    at = min(RECALL_AT, count - (queries.own is not None))
    if options.kind == "exact" or at < 1:
        return None
    truth = _neighbours(partial(_exact, blocks), queries, at)

    def measured(effort: int) -> float:
        set_effort(index, effort)
        pairs = zip(_neighbours(lambda *asked: index.search(*asked)[1], queries, at), truth, strict=True)
        return float(np.mean([len(np.intersect1d(found, best)) / at for found, best in pairs]))

    start, highest = (1, index.nlist) if has_lists(index) else (at + 1, count)
    effort, value = _least_effort(measured, start, highest, options)
    set_effort(index, effort)
    if queries.own is not None:
        logger.warning(
            "recall is measured with images of the gallery itself (%s): other images may find fewer of their "
            "neighbours. Name some that it does not hold with --queries",
            queries.source,
        )
    if value < options.recall:
        logger.warning(
            "recall@%d is %.3f, below the wanted %.3f; only longer codes or another kind would raise it",
            at,
            value,
            options.recall,
        )
    return Recall(round(value, 4), at, len(queries.features), count, effort, queries.source)


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


def _own_queries(blocks: Blocks, count: int) -> Queries:
    rows = _evenly(count, QUERIES)
    return Queries(gather(blocks, rows), rows, f"{len(rows)} {_OWN}, by the gallery network")


def _neighbours(search: Callable[[np.ndarray, int], np.ndarray], queries: Queries, at: int) -> np.ndarray:
    """A search's answer (Q, at), without the query itself where the gallery holds it."""
    if queries.own is None:
        return search(queries.features, at)
    found = search(queries.features, at + 1)
    itself = found == queries.own[:, None]
    itself[~itself.any(axis=1), -1] = True  # it was not found: the last one goes instead
    return found[~itself].reshape(len(found), at)


def _exact(blocks: Blocks, features: np.ndarray, at: int) -> np.ndarray:
    """The ``at`` best of all features for each query (Q, at); one block in memory at a time."""
    search = require("faiss.contrib.exhaustive_search", "an index").knn_ground_truth
    return search(features, blocks(), at, require("faiss", "an index").METRIC_INNER_PRODUCT, ngpu=0)[1]


def _embedded(network: Embedder, images: Sequence[GalleryImage]) -> tuple[list[int], np.ndarray]:
    """Positions of the readable images, and their features."""
    batches = list(embed_images(network, images))
    return [place for batch in batches for place in batch.positions], np.concatenate([b.features for b in batches])


def _run_queries(embedder: Embedder, gallery: Sequence[GalleryImage]) -> list[GalleryImage]:
    """The queries of the dataset that the network's run was tested on, if the gallery is of that dataset."""
    try:
        dataset = run_dataset(embedder.description)
    except UserError:  # it is not on this machine, or not known
        return []
    held = {image.path for image in gallery}
    return list_images(dataset.query) if any(image.path in held for image in list_images(dataset.gallery)) else []


def _spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items, evenly spread."""
    return [items[place] for place in _evenly(len(items), count)]


def _evenly(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of the places 0 … ``count`` − 1, evenly spread and ascending."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))


def _same(image: GalleryImage, other: GalleryImage) -> bool:
    """Whether two files, which both have this size, hold the same image."""
    with suppress(OSError):
        return image.box == other.box and filecmp.cmp(image.path, other.path, shallow=False)
    return False
