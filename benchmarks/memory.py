"""Peak training memory of a stage-2 step, worked out without a GPU and checked on the CPU.

    python benchmarks/memory.py            # the table of docs/memory.md: every VeRi pair
    python benchmarks/memory.py --check    # the same count against what the CPU allocator hands out

d3still/engine/step_memory.py says how.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.engine.step_memory import CONTEXT, GIB, SLACK, StepShape, estimated_peak, networks_of, per_image, step

CARD = 24.0  # GiB, in which every pair is to be trained in mixed precision
APART = 0.1  # between the count and the allocator's

#: The four pairs of the published VeRi-776 table, and for comparison a published one with Swin.
PAIRS = (
    StepShape("ResNet101", 256, "ResNet18", 128, 256),
    StepShape("ResNet101", 384, "ResNet18", 128, 128),
    StepShape("ResNet101", 256, "MobileNetV3_Small", 128, 256),
    StepShape("ResNet101_ibn_a", 256, "ResNet18", 128, 256),
    StepShape("Swin_Transformer_V2_Small", 256, "ResNet18", 64, 128),
)
#: Small enough for a CPU, large enough that activations outweigh the weights.
CHECKED = (
    StepShape("ResNet18", 128, "ResNet18", 64, 24, triplet_batch=12),
    StepShape("ResNet50", 128, "MobileNetV3_Small", 64, 12, triplet_batch=6),
    StepShape("ResNet50_ibn_a", 96, "ResNet18", 64, 12, triplet_batch=6),
    StepShape("Swin_Transformer_V2_Tiny", 128, "ResNet18", 64, 8, triplet_batch=4),
)


def measured_peak(setting: StepShape) -> int:
    """Bytes that the CPU allocator had handed out at the fullest moment of the real step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(*networks_of(setting), setting)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def variants(setting: StepShape) -> list[StepShape]:
    """Both precisions, each with and without recomputation."""
    return [
        setting._replace(dtype=dtype, recompute=recompute)
        for dtype in (torch.float32, torch.bfloat16)
        for recompute in (False, True)
    ]


def print_table(pairs: int | None) -> list[Goal]:
    goals = []
    print("| gallery ← query | X^t + pair | precision | recompute | fixed, MiB | an image, MiB | peak, GiB | card |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in (variant for pair in PAIRS[:pairs] for variant in variants(pair)):
        fixed, slope = per_image(setting)
        peak = (fixed + slope * (setting.pair_batch + setting.triplet_batch)) / GIB
        card = peak * SLACK + CONTEXT
        print(
            f"| {setting.gallery} {setting.gallery_size} ← {setting.query} {setting.query_size} "
            f"| {setting.triplet_batch} + {setting.pair_batch} | {_name(setting.dtype)} "
            f"| {'yes' if setting.recompute else 'no'} | {fixed / 2**20:.0f} | {slope / 2**20:.1f} | {peak:.1f} "
            f"| {card:.1f} GiB, {'fits' if card <= CARD else 'too large'} |",
            flush=True,
        )
        if setting.recompute and setting.dtype == torch.bfloat16:
            name = f"{setting.gallery} {setting.gallery_size} ← {setting.query} {setting.query_size}"
            goals.append(Goal(f"{name}, recomputing in bfloat16, GiB", card, CARD))
    return goals


def print_check(pairs: int | None) -> list[Goal]:
    goals = []
    print("| gallery | images | precision | recompute | estimated, MiB | measured, MiB | measured / estimated |")
    print("|---|---|---|---|---|---|---|")
    for setting in (variant for pair in CHECKED[:pairs] for variant in variants(pair)):
        estimated, measured = estimated_peak(setting) / 2**20, measured_peak(setting) / 2**20
        print(
            f"| {setting.gallery} {setting.gallery_size} | {setting.triplet_batch} + {setting.pair_batch} "
            f"| {_name(setting.dtype)} | {'yes' if setting.recompute else 'no'} "
            f"| {estimated:.0f} | {measured:.0f} | {measured / estimated:.3f} |",
            flush=True,
        )
        name = f"{setting.gallery} {setting.gallery_size}, {_name(setting.dtype)}, recompute {setting.recompute}"
        goals.append(Goal(f"{name}, |measured / estimated − 1|", abs(measured / estimated - 1), APART))
    return goals


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the count with the CPU allocator's")
    parser.add_argument("--pairs", type=int, help="only the first so many")
    args = parser.parse_args()
    sys.exit(judge((print_check if args.check else print_table)(args.pairs)))
