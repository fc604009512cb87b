"""Training beside a program that keeps one core busy: the number of threads that a run chooses against fixed ones.

    python benchmarks/busy_core.py [--steps 43]

Each row is a process of its own. Goals: beside a busy core, at most 1.5 times the time of one thread; alone, not
slower than with a thread a core. Exit status 1 where one is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge

STEPS = 43  # an epoch of the emoji set's stage 0
SIDE, BATCH, CLASSES = 24, 96, 100
GOAL_BUSY, GOAL_ALONE = 1.5, 1.05
BUSY_LOOP = "while True: pass"


def child(steps: int) -> tuple[float, int]:
    """Seconds of some steps of stage 0, ResNet18 on images of 24 pixels, and the number of threads."""
    import torch

    from d3still.config import get_cfg
    from d3still.distillers import DISTILLERS
    from d3still.engine.precision import Precision
    from d3still.engine.step import compute_gradients, update
    from d3still.engine.threads import choose_threads
    from d3still.modeling import build_model

    threads = choose_threads(0, None)
    torch.manual_seed(0)
    distiller = DISTILLERS.get("NONE").build(get_cfg(), None, build_model("ResNet18", CLASSES), learner="gallery")
    distiller.to(memory_format=torch.channels_last).train()
    precision = Precision("float32", torch.device("cpu"))
    optimizer = torch.optim.SGD([p for _, p in distiller.learnable_parameters()], lr=0.01, momentum=0.9)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) // 6
    began = 0.0
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        compute_gradients(distiller, precision, precision.scaler(), images, labels, None)
        update(distiller, optimizer, precision.scaler())
    return time.perf_counter() - began, threads


def measure(threads: int | None, busy: int, steps: int) -> tuple[float, int]:
    """`child` with so many threads, or those that it chooses, beside ``busy`` programs that do nothing but run."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    others = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--child", "--steps", str(steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
    seconds, threads = done.stdout.split()
    return float(seconds), int(threads)


def main() -> int:
    """Print the table; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(*child(args.steps))
        return 0
    cores, seconds = os.cpu_count() or 1, {}
    print("| busy cores | threads | seconds |\n|---|---|---|")
    for busy in (0, 1):
        for choice in (1, cores, None):
            seconds[busy, choice], threads = measure(choice, busy, args.steps)
            chosen = "" if choice else ", as chosen"
            print(f"| {busy} of {cores} | {threads}{chosen} | {seconds[busy, choice]:.1f} |", flush=True)
    return judge(
        [
            Goal("beside a busy core, chosen / one thread", seconds[1, None] / seconds[1, 1], GOAL_BUSY),
            Goal(f"alone, chosen / {cores} threads", seconds[0, None] / seconds[0, cores], GOAL_ALONE),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
