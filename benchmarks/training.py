"""Speed of a whole training step against the bare forward and backward of its networks, in one run.

    python benchmarks/training.py [--config configs/emoji/acd_rop.yaml …] [--precision float32 bfloat16]

"Bare" is what no training step can avoid: the same networks at the same shapes, batches, precision and
memory layout, forward and backward from the sum of their outputs, without losses, optimizer or data. Steps of
both kinds alternate, and ratios are of medians, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.config import load_config
from d3still.distillers import Distiller
from d3still.engine.distributed import Rank, choose_device
from d3still.engine.run import build_trainer, peak_memory
from d3still.engine.setup import Data, build_distiller, open_dataset
from d3still.engine.step import compute_gradients, normalized_pair, normalized_pairs, update
from d3still.runs.folder import RunFolder
from d3still.solver import OPTIMIZER_BUILDERS

CONFIGS = ("configs/emoji/rop.yaml", "configs/emoji/acd_rop.yaml")
WARM_UP = 3
STEP, WAIT, ANALYSIS = 1.1, 5, 0.3  # goals: step / bare, data wait in %, RAHO's analysis as a share of an epoch


def bare_step(distiller: Distiller, precision, images, pair):
    """Forward of all three passes, backward of the learner's two."""
    on_low = distiller.learner == "query"
    learned, fixed = (pair.low, pair.high) if on_low else (pair.high, pair.low)
    with precision.autocast():
        outputs = [distiller.learner_network(images), distiller.learner_network(learned)]
        with torch.no_grad():
            distiller.frozen_network(fixed)
    total = sum(output.logits.sum() + output.retrieval_feat.sum() for output in outputs)
    total.backward()
    distiller.learner_network.zero_grad(set_to_none=True)


def timed(device, action):
    """Seconds that ``action`` takes, the GPU's work included."""
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device):
    """Wait for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_trainer(path, precision_name, settings):
    """A config and its trainer with fresh weights; nothing is written but to a temporary folder."""
    cfg = load_config(path, ["EXPERIMENT.PRECISION", precision_name, "SOLVER.OPTIMIZER_BUILDER", "Uniform", *settings])
    device = choose_device(cfg.EXPERIMENT.DEVICE, cfg.EXPERIMENT.DEVICE_ID, 0, 1)
    dataset = open_dataset(cfg)
    distiller = build_distiller(cfg, dataset.num_classes).to(device, memory_format=torch.channels_last)
    folder = RunFolder(Path(tempfile.mkdtemp()))
    return cfg, build_trainer(cfg, distiller, Data(cfg, dataset, Rank(), device), folder, device)


def measure(path, precision_name, steps, settings):
    """One row of the table, and its goals."""
    _, trainer = make_trainer(path, precision_name, settings)
    distiller, precision, device = trainer.distiller, trainer.precision, trainer.device
    distiller.train()
    identity, pair_batch = next(trainer._batches(0, 0))
    images, labels = trainer.normalize(identity.to(device)), identity.labels.to(device)
    pair = normalized_pair(pair_batch, trainer.normalize, device)
    scaler = precision.scaler()

    def whole():
        compute_gradients(distiller, precision, scaler, images, labels, pair)
        update(distiller, trainer.optimizer, scaler)

    def bare():
        bare_step(distiller, precision, images, pair)

    batches, waits = trainer._batches(0, 0), []

    def with_loader():
        began = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - began)
        trainer._train_on(*batch)

    trainer.epoch = 1  # epoch 0 would also log example images
    seconds = {name: [] for name in ("bare", "step", "loader")}
    for count in range(WARM_UP + steps):
        for name, action in (("bare", bare), ("step", whole), ("loader", with_loader)):
            duration = timed(device, action)
            if count >= WARM_UP:
                seconds[name].append(duration)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    per_step = len(images) + len(pair.low)
    ratio, waited = medians["step"] / medians["bare"], 100 * sum(waits) / sum(seconds["loader"])
    row = (
        f"| {Path(path).stem} | {precision_name} | {medians['bare']:.3f} | {medians['step']:.3f} "
        f"| {ratio:.2f} | {medians['loader'] / medians['bare']:.2f} "
        f"| {per_step / medians['loader']:.0f} | {waited:.1f} % | {peak_memory(device) / 2**20:.0f} |"
    )
    name = f"{Path(path).stem}, {precision_name}"
    return row, [Goal(f"{name}, step / bare", ratio, STEP), Goal(f"{name}, % of data wait", waited, WAIT)]


def analysis_goal(path, precision_name, settings):
    """RAHO's analysis against one epoch, both measured: a tenth of each."""
    cfg, trainer = make_trainer(path, precision_name, settings)
    pairs = partial(normalized_pairs, trainer.pair_loader, trainer.normalize, trainer.device)
    share = max(1, trainer.num_steps(0) // 10)
    with torch.no_grad():
        build = OPTIMIZER_BUILDERS.get("RAHO")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.RAHO.MAX_BATCHES = share
        build(cfg, trainer.distiller, pairs, None)  # warm-up
        analysis = timed(trainer.device, lambda: build(cfg, trainer.distiller, pairs, None))
    trainer.distiller.train()
    trainer.epoch = 1
    batches = trainer._batches(0, 0)
    trainer._train_on(*next(batches))
    epoch = timed(trainer.device, lambda: [trainer._train_on(*next(batches)) for _ in range(share)])
    pair_batches, steps = trainer.pair_loader.num_batches(0), trainer.num_steps(0)
    ratio = (analysis * pair_batches) / (epoch * steps)
    return Goal(f"RAHO's analysis, {precision_name}, of an epoch, from {share} batches of each", ratio, ANALYSIS)


def main():
    """Print the table and the goals; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=CONFIGS)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    print(
        "| run | precision | bare, s | step, s | step / bare | with loader / bare | images/s | data wait | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    goals = []
    for path in args.config:
        for precision_name in args.precision:
            row, found = measure(path, precision_name, args.steps, args.opts)
            print(row, flush=True)
            goals += found
    return judge(goals + [analysis_goal(args.config[-1], name, args.opts) for name in args.precision])


if __name__ == "__main__":
    sys.exit(main())
