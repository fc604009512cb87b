"""Time and memory of the ROP loss against the plain float64 broadcast of its formula, in one run.

python benchmarks/rop.py [--batch 256] [--topk 256]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.distillers.rop import rop_loss

TEMPERATURE, RANK_WEIGHT = 0.1, 0.2
REPEATS = 5
CLEAR_PEAK = "5"  # /proc/self/clear_refs: reset the peak resident size


def broadcast(query, gallery, topk):
    """METHOD's formula as it stands, in float64, differentiated by autograd."""
    q, g = (torch.nn.functional.normalize(x.double()) for x in (query, gallery))
    s, neighbours = (g @ g.T).topk(topk, dim=1)
    q = (q @ g.T).gather(1, neighbours)
    order_g = torch.sigmoid((s[:, None, :] - s[:, :, None]) / TEMPERATURE)
    order_q = torch.sigmoid((q[:, None, :] - s[:, :, None]) / TEMPERATURE)
    weights = torch.softmax(RANK_WEIGHT * s, 1) * torch.arange(1, topk + 1)
    return (weights[:, :, None] * (order_g - order_q) ** 2).sum((1, 2)).mean() / topk


def ours(query, gallery, topk):
    """The package's loss, in float32, in its stage-2 form (both sides soft)."""
    return rop_loss(query, gallery, topk, TEMPERATURE, RANK_WEIGHT, gallery_temperature=TEMPERATURE)


LOSSES = {"plain broadcast, float64": broadcast, "rop_loss, float32": ours}


def measure(name, batch, topk, results):
    """Median seconds of forward and backward, and peak memory above what was there before, in MB."""
    torch.manual_seed(0)
    query, gallery = torch.randn(batch, 512), torch.randn(batch, 512, requires_grad=True)
    LOSSES[name](query[:8], gallery[:8], 8).backward()  # loads the kernels
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    before = peak()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        LOSSES[name](query, gallery, topk).backward()
        seconds.append(time.perf_counter() - began)
    results.put((name, statistics.median(seconds), (peak() - before) / 1e6))


def peak():
    """Peak resident bytes since it was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    """Measure both in a process of their own each, alternating, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--topk", type=int, default=256)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in LOSSES:
        results = context.Queue()
        process = context.Process(target=measure, args=(name, args.batch, args.topk, results))
        process.start()
        found[name] = results.get()[1:]
        process.join()
    print(f"B = {args.batch}, k = {args.topk}, {torch.get_num_threads()} threads, forward and backward\n")
    print("| | seconds | peak memory, MB |\n|---|---|---|")
    for name, (seconds, memory) in found.items():
        print(f"| {name} | {seconds:.3f} | {memory:.0f} |")
    reference, own = (found[name] for name in LOSSES)
    return judge([Goal("time, share of the reference's", own[0] / reference[0], 0.5), Goal("peak, MB", own[1], 400)])


if __name__ == "__main__":
    sys.exit(main())
