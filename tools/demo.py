"""The main job in one go: train a gallery network, distil a query network from it, then let ACD bring the
gallery network to the query network. Runs on the embedded emoji set, on a laptop: `make demo` from scratch, and
`make demo-pretrained` with both networks from ImageNet weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _bootstrap

from d3still.config import REPOSITORY, Config, load_config
from d3still.text import visible

ROOT = "log/demo"


@dataclass(frozen=True)
class Demo:
    """Three stages in minutes: their configs, and what cuts them short, so that no query network is trained out."""

    baseline: str
    configs: tuple[str, str, str]
    short: tuple[list[str], list[str], list[str]]
    note: str


SCRATCH = Demo(
    "ROP",
    ("vanilla", "rop", "acd_rop"),
    ([], ["SOLVER.MAX_EPOCHS", "16", "SOLVER.LR_DECAY_STEPS", "[3]"], []),
    "was a short one: 16 epochs, the config has 60.",
)
_PAIR = "MobileNetV2_64x64_MobileNetV2_32x32"
PRETRAINED = Demo(
    "CSD",
    ("vanilla_MobileNetV2_64x64", f"{_PAIR}/csd", f"{_PAIR}/acd_csd"),
    (["SOLVER.MAX_EPOCHS", "12"], ["SOLVER.MAX_EPOCHS", "12", "SOLVER.LR_DECAY_STEPS", "[4]"], []),
    "was a short one, 12 epochs where the config has 40, as was stage 0 (12 of 28).",
)


def config(name: str, settings: list[str]) -> Config:
    """A stage's config, with what the demo changes."""
    return load_config(REPOSITORY / f"configs/emoji/{name}.yaml", ["OUTPUT_DIR.ROOT_PATH", ROOT, *settings])


def run_stage(name: str, settings: list[str], title: str) -> tuple[Path, dict[str, Any]]:
    """Train one stage afresh; its folder and its metrics."""
    print(f"\n── {title} (configs/emoji/{name}.yaml)", file=sys.stderr)
    from d3still.engine import train

    folder = train(config(name, settings), resume="never")
    return folder, json.loads((folder / "metrics.json").read_text())


def query_alone(cfg: Config) -> dict[str, float]:
    """A run's query network on both sides, all images at its size: what asymmetric retrieval is to beat."""
    from d3still.engine.finished_run import open_run
    from d3still.engine.retrieval import evaluate

    with open_run(cfg) as run:
        run.data.sizes = replace(run.data.sizes, gallery_test=run.data.sizes.query_test)
        return evaluate(cfg, run.data, None, run.distiller.query, run.device).summaries()["SIR"]


def report(demo: Demo, before: dict[str, Any], after: dict[str, Any], alone: dict[str, float]) -> str:
    """The table: what ACD brought, what the query network reaches alone, and which blocks RAHO let move."""
    rows = [(demo.baseline, before), (f"{demo.baseline} + ACD", after)]
    columns = [("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP"), ("SIR", "R1")]
    lines = [f"{'':12}" + "".join(f"{f'{kind} {name}':>10}" for kind, name in columns)]
    for title, metrics in rows:
        lines.append(f"{title:12}" + "".join(f"{metrics[kind][name]:10.2f}" for kind, name in columns))
    gains = [after[kind][name] - before[kind][name] for kind, name in columns]
    lines.append(f"{'Δ':12}" + "".join(f"{gain:+10.2f}" for gain in gains))
    lines.append(f"{'query alone':12}{'–':>10}{'–':>10}{alone['mAP']:10.2f}{alone['R1']:10.2f}")
    groups = after["optimizer_report"]["groups"]
    full = ", ".join(groups["unimportant_at_both"]) or "none"
    partly = ", ".join(groups["unimportant_at_high_resolution_only"]) or "none"
    return "\n".join(
        [
            "",
            "Test identities of the emoji set, in percent. AIR: query network against gallery network; SIR: gallery",
            "network against itself, before and after ACD, or the query network against itself (query alone). Stage 1",
            demo.note,
            "",
            *lines,
            "",
            f"RAHO: unimportant at both resolutions (full learning rate): {full}",
            f"      unimportant at high resolution only (γ · lr):         {partly}",
        ]
    )


def main() -> None:
    """Train the three stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", action="store_true", help="from checkpoints/get_mobilenetv2.py's weights")
    demo = PRETRAINED if parser.parse_args().pretrained else SCRATCH
    titles = (
        "Stage 0: the gallery network alone, at high resolution",
        f"Stage 1: {demo.baseline} distils the query network, at low resolution, from the frozen gallery network",
        "Stage 2: ACD moves the gallery network towards the frozen query network",
    )
    began = time.perf_counter()
    stages = list(zip(demo.configs, demo.short, titles, strict=True))
    (stage_0, _), (_, before), (stage_2, after) = [run_stage(*stage) for stage in stages]
    print(report(demo, before, after, query_alone(config(*stages[1][:2]))))
    minutes = (time.perf_counter() - began) / 60
    where = visible(f"The runs are in {stage_0.parents[1]}; look at {stage_2 / 'tensorboard'} with TensorBoard.")
    print(f"\n{minutes:.1f} minutes. {where}")


if __name__ == "__main__":
    _bootstrap.run(main)
