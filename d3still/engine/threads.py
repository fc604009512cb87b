"""How many threads a CPU computes with. A busy core makes each of them wait for the one that shares it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

from d3still.data.sources import usable_cores

logger = logging.getLogger(__name__)

PROC_STAT = Path("/proc/stat")
SAMPLE_SECONDS = 0.3
IDLE_ENOUGH = 0.7  # share of the sample that a core must have been idle to count as free


def choose_threads(wanted: int, saved: int | None) -> int:
    """Set the number of threads of this process, say so, and return it.

    Sums over threads round differently, so a resumed run keeps the number that it began with.

    Args:
        wanted: ``EXPERIMENT.NUM_THREADS``; 0 leaves it to ``OMP_NUM_THREADS``, else to the cores that are free now.
        saved: the number in the checkpoint of a run that goes on; None for a fresh one.
    """
    if wanted:
        threads, why = wanted, "EXPERIMENT.NUM_THREADS"
    elif saved:
        threads, why = saved, "as the run began"
    elif os.environ.get("OMP_NUM_THREADS"):
        threads, why = torch.get_num_threads(), "OMP_NUM_THREADS"
    else:
        free = free_cores()
        threads = max(1, min(free, torch.get_num_threads()))
        why = f"{free} of {usable_cores()} cores are free"
    torch.set_num_threads(threads)
    logger.info("%d CPU thread%s (%s)", threads, "" if threads == 1 else "s", why)
    if saved and saved != threads:
        logger.warning("the run began with %d CPU threads: from here on its numbers differ in their last bits", saved)
    return threads


def free_cores() -> int:
    """Cores that this process may use and that were idle in a short sample; all where the system does not tell."""
    before = _idle_and_total()
    if not before:
        return usable_cores()
    time.sleep(SAMPLE_SECONDS)
    after = _idle_and_total()
    usable = os.sched_getaffinity(0)
    spans = [
        (after[core][0] - idle, after[core][1] - total)
        for core, (idle, total) in before.items()
        if core in usable and core in after
    ]
    idle_shares = [idle / total for idle, total in spans if total > 0]
    return min(usable_cores(), sum(share >= IDLE_ENOUGH for share in idle_shares))


def _idle_and_total() -> dict[int, tuple[int, int]]:
    """Ticks of each core, idle and in all, from ``/proc/stat``; empty where there is none."""
    try:
        lines = PROC_STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {}
    for name, *ticks in (line.split() for line in lines if line.startswith("cpu")):
        if name != "cpu":
            numbers = [int(tick) for tick in ticks[:8]]  # what follows, guests' time, is in these already
            found[int(name[3:])] = (numbers[3] + numbers[4], sum(numbers))
    return found
