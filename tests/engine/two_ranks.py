"""Run by torchrun from test_distributed.py: losses and gradients of each baseline on half a batch a rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from d3still.config import get_cfg
from d3still.data import ImageCache, Sample, test_loader
from d3still.distillers import DISTILLERS, Pair
from d3still.distillers.base import Distiller
from d3still.engine.distributed import average_gradients, gather_lists, gather_rows, process_group
from d3still.modeling import build_model

CLASSES, BATCH = 4, 8
BASELINES = [name for name in DISTILLERS if name not in ("NONE", "ACD")]
CASES = [(1, name, ()) for name in BASELINES] + [(2, name, ()) for name in ("CSD", "ROP", "UGD")]
# learnable parts that get no gradient: UGD's projectors
CASES += [(1, "UGD", ("UGD.BETA", 0.0)), (1, "UGD", ("UGD.KD_WEIGHT", 0.0))]


def build(stage: int, baseline: str, more: tuple = ()) -> Distiller:
    """A float64 distiller with frozen batch statistics, the same on every rank."""
    torch.manual_seed(0)
    cfg = get_cfg()
    kind = baseline if stage == 1 else "ACD"
    settings = ["ROP.TOPK", 6, "CSD.TOPK", 6, "D3.TOPK", 4, "INPUT.STUDENT_SIZE_TRAIN", [32, 32]]
    cfg.merge_from_list(["DISTILLER.TYPE", kind, "ACD.BASELINE", baseline, *settings, *more])
    networks = build_model("ResNet18", CLASSES), build_model("ResNet18_ibn_a", CLASSES)
    distiller = DISTILLERS.get(kind).build(cfg, *networks, learner="query" if stage == 1 else "gallery").double()
    distiller.train()
    for module in distiller.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.eval()
    return distiller


def batch(stage: int, part: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor, Pair]:
    """One batch, or a rank's part of it."""
    torch.manual_seed(1)
    size = 16 if stage == 1 else 32
    images = torch.randn(BATCH, 3, size, size, dtype=torch.float64)
    low, high = (torch.randn(BATCH, 3, s, s, dtype=torch.float64) for s in (16, 32))
    labels = torch.arange(BATCH) % CLASSES
    return images[part], labels[part], Pair(low[part], high[part], labels.flip(0)[part])


def gradients(distiller: Distiller, *inputs: object) -> dict[str, torch.Tensor]:
    """Every loss term and every gradient of a step."""
    losses, _ = distiller(*inputs)
    sum(losses.values()).backward()
    average_gradients(parameter for _, parameter in distiller.learnable_parameters())
    found = {f"loss.{name}": value.detach() for name, value in losses.items()}
    return found | {name: p.grad for name, p in distiller.learnable_parameters() if p.grad is not None}


def main(out: Path) -> None:
    """Measure on two ranks; rank 0 saves."""
    with process_group("cpu") as (ranks, _):
        half = BATCH // ranks.world_size
        own = slice(ranks.rank * half, (ranks.rank + 1) * half)
        results = {}
        for case in CASES:
            found = gradients(build(*case), *batch(case[0], own))
            for name in [name for name in found if name.startswith("loss.")]:
                found[name] = gather_rows(found[name].reshape(1)).mean()  # cross entropy is each rank's own
            results[str(case)] = found
        samples = [Sample(str(path), 0, i) for i, path in enumerate(sorted(out.parent.glob("*.png")))]
        loader = test_loader(
            samples, size=(8, 8), batch_size=2, rank=ranks.rank, world_size=ranks.world_size, cache=ImageCache(samples)
        )
        indices = [int(i) for images in loader.epoch(0) for i in images.indices]
        gathered = gather_lists(indices)
        if ranks.is_main:
            torch.save({"results": results, "indices": gathered}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
