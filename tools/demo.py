"""The main job in one go: train a gallery network, distil a query network from it, then let ACD bring the
gallery network to the query network. Runs on the embedded emoji set, on a laptop: `make demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import _bootstrap

from d3still.config import REPOSITORY, Config, load_config
from d3still.text import visible

ROOT = "log/demo"
STAGES = (
    ("vanilla", "Stage 0: the gallery network alone, at high resolution"),
    ("rop", "Stage 1: ROP distils the query network, at low resolution, from the frozen gallery network"),
    ("acd_rop", "Stage 2: ACD moves the gallery network towards the frozen query network"),
)
# A quarter of the config's stage 1, so that the demo takes minutes: its query network is not trained out.
SHORT = {"rop": ["SOLVER.MAX_EPOCHS", "16", "SOLVER.LR_DECAY_STEPS", "[3]"]}


def config(name: str) -> Config:
    """A stage's config, with what the demo changes."""
    return load_config(REPOSITORY / f"configs/emoji/{name}.yaml", ["OUTPUT_DIR.ROOT_PATH", ROOT, *SHORT.get(name, [])])


def run_stage(name: str, title: str) -> tuple[Path, dict[str, Any]]:
    """Train one stage afresh; its folder and its metrics."""
    print(f"\n── {title} (configs/emoji/{name}.yaml)", file=sys.stderr)
    from d3still.engine import train

    folder = train(config(name), resume="never")
    return folder, json.loads((folder / "metrics.json").read_text())


def query_alone(cfg: Config) -> dict[str, float]:
    """A run's query network on both sides, all images at its size: what asymmetric retrieval is to beat."""
    from d3still.engine.finished_run import open_run
    from d3still.engine.retrieval import evaluate

    with open_run(cfg) as run:
        run.data.sizes = replace(run.data.sizes, gallery_test=run.data.sizes.query_test)
        return evaluate(cfg, run.data, None, run.distiller.query, run.device).summaries()["SIR"]


def report(before: dict[str, Any], after: dict[str, Any], alone: dict[str, float]) -> str:
    """The table: what ACD brought, what the query network reaches alone, and which blocks RAHO let move."""
    rows = [("ROP", before), ("ROP + ACD", after)]
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
            "was a short one: 16 epochs, the config has 60.",
            "",
            *lines,
            "",
            f"RAHO: unimportant at both resolutions (full learning rate): {full}",
            f"      unimportant at high resolution only (γ · lr):         {partly}",
        ]
    )


def main() -> None:
    """Train the three stages and print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    began = time.perf_counter()
    results = [run_stage(name, title) for name, title in STAGES]
    (rop, before), (acd, after) = results[1:]
    print(report(before, after, query_alone(config("rop"))))
    minutes = (time.perf_counter() - began) / 60
    where = visible(f"The runs are in {rop.parents[1]}; look at {acd / 'tensorboard'} with TensorBoard.")
    print(f"\n{minutes:.1f} minutes. {where}")


if __name__ == "__main__":
    _bootstrap.run(main)
