"""Speed, recall and size of the kinds of index, on synthetic features of width 512.

    python benchmarks/search.py                     # 10 k and 100 k images, all kinds: minutes
    python benchmarks/search.py --sizes 1000000 --kinds exact ivf ivfpq64 ivfpq128      # 7 GB of memory, an hour

Features are made to be like those of retrieval: images of an identity lie around its centre, twenty to an
identity, centres fill 64 of the 512 dimensions, queries are further images of some identities. Lists, codes and
the effort of a search are what tools/index_net.py build would choose for recall@10 ≥ 0.95. Prints one Markdown row
an index, what 100 M images would need, calculated from the largest, and the goals: that recall where codes do not
lose it for good, and codes that take at most 0.15 of the exact features' bytes.

Everything runs on one thread and is timed in processor seconds, so that what else the machine does hardly matters:
queries/s are those of one core.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.deploy.index import write_faiss
from d3still.deploy.kinds import RECALL_AT, IndexOptions, Queries, add, new_index, train, tune
from d3still.errors import require

WIDTH, INNER, PER_IDENTITY = 512, 64, 20
WITHIN, EVERYWHERE = 0.8, 0.5  # spread of an identity's images within the 64 dimensions, and over all 512
BLOCK = 50_000  # features made at once
QUERIES, TIMES = 1000, 3  # searched together, the fastest of so many times
TUNED_WITH = 500  # of these, as a build chooses the effort with
ALONE = 100  # searched one by one, the median of all
HUNDRED_MILLION = 100_000_000
WANTED, SMALLER = 0.95, 0.15  # goals: recall@10; bytes of codes, as a share of the exact features'
KINDS = {
    "exact": IndexOptions("exact"),
    "ivf": IndexOptions("ivf"),
    "ivfpq64": IndexOptions("ivfpq", code_bytes=64),
    "ivfpq128": IndexOptions("ivfpq", code_bytes=128),
    "hnsw": IndexOptions("hnsw"),
}


class Row(NamedTuple):
    """What was measured of one index."""

    kind: str
    images: int
    build_seconds: float
    effort: int
    lists: int
    recall: float
    queries_per_second: float
    milliseconds_alone: float
    bytes_per_image: float


class Features:
    """Synthetic features of length 1, made block by block from a seed, the same each time."""

    def __init__(self, images: int) -> None:
        self.images = images
        rng = np.random.default_rng(2024)
        self.axes = np.linalg.qr(rng.standard_normal((WIDTH, INNER)))[0].T.astype(np.float32)
        self.identities = images // PER_IDENTITY

    def gallery(self) -> Iterator[np.ndarray]:
        """All gallery features, (n, 512) at a time."""
        for start in range(0, self.images, BLOCK):
            numbers = np.arange(start, min(start + BLOCK, self.images))
            yield self._of(numbers % self.identities, [1, start])

    def queries(self) -> np.ndarray:
        """(QUERIES, 512)."""
        return self._of(np.random.default_rng(1).integers(self.identities, size=QUERIES), [2])

    def _of(self, identities: np.ndarray, seed: list[int]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        # an identity's centre follows from its number alone
        distinct, place = np.unique(identities, return_inverse=True)
        centres = np.stack([np.random.default_rng([3, int(i)]).standard_normal(INNER, np.float32) for i in distinct])
        inner = centres[place] + WITHIN * rng.standard_normal((len(identities), INNER), np.float32)
        noise = rng.standard_normal((len(identities), WIDTH), np.float32) * (EVERYWHERE * (INNER / WIDTH) ** 0.5)
        features = inner @ self.axes + noise
        return features / np.linalg.norm(features, axis=1, keepdims=True)


def measure(kind: str, blocks: list[np.ndarray], queries: np.ndarray, truth: np.ndarray) -> Row:
    """Build one index and search it."""
    images = sum(map(len, blocks))
    options = KINDS[kind]
    began = time.process_time()
    index = new_index(options, WIDTH, images)
    train(index, lambda: iter(blocks), images)
    add(index, lambda: iter(blocks))
    seconds = time.process_time() - began
    recall = tune(index, lambda: iter(blocks), options, Queries(queries[:TUNED_WITH], None, "further images"))
    found = index.search(queries, RECALL_AT)[1]
    together = min(seconds_of(index, queries) for _ in range(TIMES))
    alone = statistics.median(seconds_of(index, query[None]) for query in queries[:ALONE])
    counted = Counted()
    write_faiss(index, counted.write)
    share = np.mean([len(np.intersect1d(a, b)) / RECALL_AT for a, b in zip(found, truth, strict=True)])
    return Row(
        kind=kind,
        images=images,
        build_seconds=seconds,
        effort=recall.effort if recall else 0,
        lists=getattr(index, "nlist", 0),
        recall=float(share),
        queries_per_second=len(queries) / together,
        milliseconds_alone=1000 * alone,
        bytes_per_image=counted.bytes / images,
    )


def seconds_of(index: Any, queries: np.ndarray) -> float:
    """Processor time of one search."""
    began = time.process_time()
    index.search(queries, RECALL_AT)
    return time.process_time() - began


class Counted:
    """A file that only counts."""

    bytes = 0

    def write(self, data: bytes) -> int:
        """Count and forget."""
        self.bytes += len(data)
        return len(data)


def exact_answers(blocks: list[np.ndarray], queries: np.ndarray) -> np.ndarray:
    """The ten best of all features for each query (Q, 10)."""
    faiss = require("faiss", "this benchmark")
    index = faiss.IndexFlatIP(WIDTH)
    add(index, lambda: iter(blocks))
    return index.search(queries, RECALL_AT)[1]


def describe(row: Row) -> str:
    """A row of the table."""
    looked = {"exact": "all", "hnsw": f"{row.effort} candidates"}.get(row.kind, f"{row.effort} of {row.lists} lists")
    return (
        f"| {row.images:,} | {row.kind} | {looked} | {row.recall:.3f} | {row.queries_per_second:,.0f} | "
        f"{row.milliseconds_alone:.2f} | {row.bytes_per_image:,.0f} | {row.build_seconds:,.0f} |"
    )


def goal(row: Row) -> Goal:
    """What an index is to reach: its recall, or, where codes lose some for good, its size."""
    name = f"{row.images:,} images, {row.kind}"
    if KINDS[row.kind].kind == "ivfpq":
        return Goal(f"{name}, share of the exact bytes", row.bytes_per_image / (4 * WIDTH), SMALLER)
    return Goal(f"{name}, recall@{RECALL_AT}", row.recall, WANTED, at_least=True)


def hundred_million(row: Row) -> str:
    """What this index would need for 100 M images: its bytes and its time per image looked at, times more images."""
    grown = HUNDRED_MILLION / row.images
    size = row.bytes_per_image * HUNDRED_MILLION / 1e9
    line = f"| {row.kind} | {size:,.0f} GB | "
    if row.kind == "exact":
        return line + f"{row.milliseconds_alone * grown:,.0f} ms | all images: time × {grown:.0f} |"
    if row.kind == "hnsw":
        return line + "not calculated | the steps of a walk through a graph do not follow from a smaller graph |"
    # lists grow as the root of the images: so many more lists, each so much longer
    root = grown**0.5
    low, high = row.milliseconds_alone * root, row.milliseconds_alone * grown
    share = row.effort / row.lists
    return line + (
        f"{low:,.1f} … {high:,.0f} ms | {row.lists * root:,.0f} lists, each {root:.0f} times as long: × {root:.0f} "
        f"for as many lists ({row.effort}), × {grown:.0f} for the same share of them ({share:.1%}) |"
    )


def on_one_thread() -> None:
    """Start this program again with one thread, unless it has one: the libraries read that when they are loaded."""
    wanted = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def main() -> int:
    """Measure, print, judge; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    faiss: Any = require("faiss", "this benchmark")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"{platform.machine()}, {memory:.0f} GiB; FAISS {faiss.__version__} on one thread\n")
    print("| images | kind | looked at | recall@10 | queries/s | ms, one alone | bytes/image | build, s |")
    print("|---|---|---|---|---|---|---|---|")
    largest: dict[str, Row] = {}
    goals = []
    for images in args.sizes:
        features = Features(images)
        blocks, queries = list(features.gallery()), features.queries()
        truth = exact_answers(blocks, queries)
        for kind in args.kinds:
            row = largest[kind] = measure(kind, blocks, queries, truth)
            print(describe(row), flush=True)
            goals.append(goal(row))
    print("\n100 M images, calculated:\n\n| kind | size | one query alone | how |\n|---|---|---|---|")
    for row in largest.values():
        print(hundred_million(row))
    return judge(goals)


if __name__ == "__main__":
    on_one_thread()
    sys.exit(main())
