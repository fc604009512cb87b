"""Run by torchrun from test_distributed.py: losses and gradients of each baseline on half a batch a rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from d3still.config import get_cfg
from d3still.data import ImageCache, Sample, test_loader
from d3still.distillers import DISTILLERS, Pair
from d3still.distillers.base import Distiller
from d3still.engine.distributed import Agreement, average_gradients, gather_lists, gather_rows, process_group
from d3still.engine.recomputation import Recomputation
from d3still.modeling import build_model

CLASSES, BATCH = 4, 8
GATHER = dist.all_gather
BASELINES = [name for name in DISTILLERS if name not in ("NONE", "ACD")]
CASES: list[tuple] = [(1, name, ()) for name in BASELINES]
CASES += [(2, name, ()) for name in ("BCT", "CSD", "ROP", "SSP", "UGD")]
# learnable parts that get no gradient: UGD's projectors
CASES += [(1, "UGD", ("UGD.BETA", 0.0)), (1, "UGD", ("UGD.KD_WEIGHT", 0.0))]


def build(stage: int, baseline: str, more: tuple = ()) -> Distiller:
    """A float64 distiller with frozen batch statistics, the same on every rank."""
    torch.manual_seed(0)
    cfg = get_cfg()
    kind = baseline if stage == 1 else "ACD"
    settings = ["ROP.TOPK", 6, "CSD.TOPK", 6, "D3.TOPK", 4, "SSP.CENTROIDS", 2, "INPUT.STUDENT_SIZE_TRAIN", [32, 32]]
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
    distiller.prepare(lambda: [inputs[2]])
    losses, _ = distiller(*inputs)
    sum(losses.values()).backward()
    average_gradients(parameter for _, parameter in distiller.learnable_parameters())
    found = {f"loss.{name}": value.detach() for name, value in losses.items()}
    return found | {name: p.grad for name, p in distiller.learnable_parameters() if p.grad is not None}


def with_mean_losses(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Losses averaged over the ranks: cross entropy is each rank's own."""
    means = {name: gather_rows(found[name].reshape(1)).mean() for name in found if name.startswith("loss.")}
    return found | means


def gradients_when_memory_ends(own: slice, rank: int) -> dict[str, torch.Tensor]:
    """`gradients` of ROP where rank 1's memory ends after the ranks' first exchanges, and whether each recomputes."""
    case = (1, "ROP", ())
    distiller, failures = build(*case), []

    def full(*_: object) -> None:
        if rank == 1 and not distiller.query.checkpoint_activations:
            failures.append(rank)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    distiller.gallery.register_forward_pre_hook(full)  # it runs once the supervised losses were exchanged
    recomputation = Recomputation(distiller, "auto", lambda: "does not fit")

    def compute() -> dict[str, torch.Tensor]:
        distiller.zero_grad(set_to_none=True)
        losses, _ = distiller(*batch(case[0], own))
        sum(losses.values()).backward()
        return {f"loss.{name}": value.detach() for name, value in losses.items()}

    found = recomputation.attempt(compute)
    own_choice = recomputation.on
    (agreed,) = Agreement().highest(own_choice)
    average_gradients(parameter for _, parameter in distiller.learnable_parameters())
    assert len(failures) == rank and own_choice == bool(rank) and agreed, "one fails, both know"
    return found | {name: p.grad for name, p in distiller.learnable_parameters() if p.grad is not None}


def sync_bn_gradients(device: torch.device, part: slice) -> dict[str, torch.Tensor]:
    """`gradients` of ROP with learning batch norms, over all ranks where there are several."""
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_list(["DISTILLER.TYPE", "ROP", "ROP.TOPK", 6])
    networks = build_model("ResNet18", CLASSES), build_model("ResNet18", CLASSES)
    distiller = DISTILLERS.get("ROP").build(cfg, *networks, learner="query").to(device)
    if dist.is_initialized():
        nn.SyncBatchNorm.convert_sync_batchnorm(distiller.query)
    images, labels, pair = batch(1, part)
    views = Pair(pair.low.float().to(device), pair.high.float().to(device), pair.labels.to(device))
    return gradients(distiller.train(), images.float().to(device), labels.to(device), views)


def gather_by_way_of_the_cpu(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
    """gloo gathers no CUDA tensors, and NCCL lets no two ranks share a card."""
    copies = [part.cpu() for part in parts]
    GATHER(copies, tensor.cpu())
    for part, copy in zip(parts, copies, strict=True):
        part.copy_(copy)


def on_one_card(out: Path) -> None:
    """`sync_bn_gradients` on two ranks that share a GPU; rank 0 saves."""
    dist.init_process_group("gloo")
    dist.all_gather = gather_by_way_of_the_cpu
    rank, half = dist.get_rank(), BATCH // dist.get_world_size()
    found = with_mean_losses(sync_bn_gradients(torch.device("cuda", 0), slice(rank * half, (rank + 1) * half)))
    if rank == 0:
        torch.save({name: value.cpu() for name, value in found.items()}, out)
    dist.destroy_process_group()


def main(out: Path) -> None:
    """Measure on two ranks; rank 0 saves."""
    with process_group("cpu") as (ranks, _):
        half = BATCH // ranks.world_size
        own = slice(ranks.rank * half, (ranks.rank + 1) * half)
        results = {}
        for case in CASES:
            found = gradients(build(*case), *batch(case[0], own))
            results[str(case)] = with_mean_losses(found)
        results["memory ends"] = with_mean_losses(gradients_when_memory_ends(own, ranks.rank))
        samples = [Sample(str(path), 0, i) for i, path in enumerate(sorted(out.parent.glob("*.png")))]
        loader = test_loader(
            samples, size=(8, 8), batch_size=2, rank=ranks.rank, world_size=ranks.world_size, cache=ImageCache(samples)
        )
        indices = [int(i) for images in loader.epoch(0) for i in images.indices]
        gathered = gather_lists(indices)
        if ranks.is_main:
            torch.save({"results": results, "indices": gathered}, out)


if __name__ == "__main__":
    (on_one_card if sys.argv[2:] == ["cuda"] else main)(Path(sys.argv[1]))
