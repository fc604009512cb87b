"""Time and memory of the ranking evaluation at the sizes of three benchmarks, and of re-ranking at VeRi's.

    python benchmarks/ranking.py                 # all, some minutes
    python benchmarks/ranking.py --sizes veri    # seconds
    python benchmarks/ranking.py --sizes veri msmt17 --no-reranking

Features are random, 512 wide, gathered around their identities, with each benchmark's numbers of images,
identities and cameras. The yardstick is the bare product of the same features, in blocks of the same size
and nothing else; both ways take turns within one process, and the ratio is the median over the turns.
Memory is the highest resident size during the evaluation less that before it, with features loaded (Linux).
Every size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.dense_reranking import dense_k_reciprocal_distances
from benchmarks.goals import Goal, judge
from d3still.evaluation import evaluate_ranking, k_reciprocal_distances
from d3still.evaluation.ranks import _BLOCK

WIDTH = 512
MIB = 1 << 20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PARAMETERS = (60, 10, 0.3)  # k1, k2, λ of re-ranking


class Size(NamedTuple):
    """``cameras`` 0: query and gallery are one set, and each image is its own camera."""

    name: str
    queries: int
    gallery: int
    identities: int
    cameras: int
    turns: int


SIZES = {
    "veri": Size("VeRi-776", 1678, 11579, 200, 20, 9),
    "msmt17": Size("MSMT17", 11659, 82161, 3060, 15, 3),
    "sop": Size("SOP", 60502, 60502, 11316, 0, 1),
}


def make_features(size, seed=0):
    """Query and gallery features, identities and cameras, in the order that `evaluate_ranking` takes them."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((size.identities, WIDTH), dtype=np.float32)
    share = rng.gamma(6.0, size=size.identities)  # images an identity vary, within a factor of a few

    def draw(count):
        ids = rng.choice(size.identities, count, p=share / share.sum())
        features = rng.standard_normal((count, WIDTH), dtype=np.float32)
        features *= 1.3 + 1.95 * rng.random((count, 1), dtype=np.float32)  # some images are harder than others
        features += centers[ids]
        return features, ids

    gallery, gallery_ids = draw(size.gallery)
    if size.cameras == 0:
        own = np.arange(size.gallery)
        return gallery, gallery, gallery_ids, gallery_ids, own, own
    query, query_ids = draw(size.queries)
    cams = [rng.integers(0, size.cameras, count) for count in (size.queries, size.gallery)]
    return query, gallery, query_ids, gallery_ids, *cams


def bare_numpy(query, gallery):
    """The product of the features in blocks, and nothing else."""
    step = max(1, _BLOCK // len(gallery))
    buffer = np.empty((min(step, len(query)), len(gallery)), dtype=np.float32)
    for low in range(0, len(query), step):
        part = query[low : low + step]
        np.matmul(part, gallery.T, out=buffer[: len(part)])


def bare_torch(query, gallery):
    """The same with torch's product."""
    step = max(1, _BLOCK // len(gallery))
    query, gallery = torch.from_numpy(query), torch.from_numpy(gallery)
    buffer = torch.empty((min(step, len(query)), len(gallery)))
    for low in range(0, len(query), step):
        part = query[low : low + step]
        torch.mm(part, gallery.T, out=buffer[: len(part)])


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def memory_of(field):
    """A size from /proc in MiB; NaN where there is none."""
    if not STATUS.exists():
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def reset_peak():
    """Start the highest resident size anew, and return the present one in MiB."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    return memory_of("VmRSS")


def measure_ranking(size):
    arguments = make_features(size)
    query, gallery = arguments[:2]
    bare_numpy(query[:64], gallery)
    evaluate_ranking(*(part[:64] if place % 2 == 0 else part for place, part in enumerate(arguments)))
    turns, peak = [], 0.0
    for _ in range(size.turns):
        bare, _ = seconds(bare_numpy, query, gallery)
        other, _ = seconds(bare_torch, query, gallery)
        before = reset_peak()
        taken, result = seconds(evaluate_ranking, *arguments)
        peak = max(peak, memory_of("VmHWM") - before)
        turns.append((bare, other, taken))
    middle = [statistics.median(column) for column in zip(*turns, strict=True)]
    ratios = [statistics.median(taken / turn[kind] for *turn, taken in turns) for kind in (0, 1)]
    return {"seconds": middle, "ratios": ratios, "peak": peak, "mAP": 100 * result.mAP}


def measure_reranking(size, dense):
    query, gallery = make_features(size)[:2]
    k_reciprocal_distances(query[:32], gallery[:500], *PARAMETERS)
    function = dense_k_reciprocal_distances if dense else k_reciprocal_distances
    before = reset_peak()
    taken, distances = seconds(function, query, gallery, *PARAMETERS)
    return {"seconds": taken, "peak": memory_of("VmHWM") - before, "sample": distances[::97, ::97].tolist()}


def in_own_process(*task):
    command = [sys.executable, __file__, "--task", *task]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def ranking_table(names):
    goals = []
    print("| size | queries × gallery | product, numpy | product, torch | evaluate_ranking |", end="")
    print(" ÷ numpy | ÷ torch | peak memory | mAP |\n|---|---|---|---|---|---|---|---|---|")
    for name in names:
        size, found = SIZES[name], in_own_process("ranking", name)
        times = " | ".join(f"{value:.2f} s" for value in found["seconds"])
        ratios = " | ".join(f"{value:.2f}" for value in found["ratios"])
        print(f"| {size.name} | {size.queries:,} × {size.gallery:,} | {times} | {ratios}", end="")
        print(f" | +{found['peak']:.0f} MiB | {found['mAP']:.1f} |", flush=True)
        goals.append(Goal(f"{size.name}, time over torch's product", found["ratios"][1], 1.3))
        goals.append(Goal(f"{size.name}, MiB over the features", found["peak"], 1024))
    return goals


def reranking_table():
    sparse, dense = (in_own_process(kind, "veri") for kind in ("sparse", "dense"))
    apart = np.abs(np.subtract(sparse["sample"], dense["sample"])).max()
    print("\n| re-ranking, VeRi-776's size, k1 = 60, k2 = 10, λ = 0.3 | time | peak memory |\n|---|---|---|")
    print(f"| k_reciprocal_distances | {sparse['seconds']:.1f} s | +{sparse['peak']:.0f} MiB |")
    print(f"| the same on dense float32 arrays | {dense['seconds']:.1f} s | +{dense['peak']:.0f} MiB |")
    print(f"\n{dense['seconds'] / sparse['seconds']:.1f} times as fast; largest difference of a sample {apart:.1e}.")
    return [Goal("re-ranking, times as fast as dense arrays", dense["seconds"] / sparse["seconds"], 5, at_least=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES), help="which sizes to rank")
    parser.add_argument("--no-reranking", action="store_true", help="leave re-ranking out")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.task:
        kind, name = chosen.task
        size = SIZES[name]
        print(json.dumps(measure_ranking(size) if kind == "ranking" else measure_reranking(size, kind == "dense")))
        return 0
    print(f"numpy {np.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    goals = ranking_table(chosen.sizes)
    if not chosen.no_reranking:
        goals += reranking_table()
    return judge(goals)


if __name__ == "__main__":
    sys.exit(main())
