"""From named parameters to an optimizer: parameter groups, and the table of builders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from d3still.distillers.base import Distiller, Pairs
from d3still.errors import UserError
from d3still.registry import ConfiguredRegistry

HEAD_PREFIX = "fc."  # embedding head and classifier, as their state-dict keys begin
OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


@dataclass(frozen=True)
class Built:
    """An optimizer and what its builder wants to log and save with the run (plain values only)."""

    optimizer: Optimizer
    report: dict[str, Any] = field(default_factory=dict)


# A builder takes (cfg, distiller, pairs, report): `pairs()` iterates the stage-2 pair batches once, on the
# device; `report` is the saved one when a run is resumed, so that nothing is analysed twice.
# `Distiller.prepare` gets the same `pairs`, before. One pass for both would save only the query network's part of it
# (RAHO with SSP, stage 2), and would tie what a loss keeps as tensors to what an optimizer keeps as a report.
Builder = Callable[[CfgNode, Distiller, Pairs, "dict[str, Any] | None"], Built]

OPTIMIZER_BUILDERS = ConfiguredRegistry("optimizer builder", "SOLVER.OPTIMIZER_BUILDER")


def build_optimizer(cfg: CfgNode, distiller: Distiller, pairs: Pairs, report: dict[str, Any] | None = None) -> Built:
    """The optimizer of ``SOLVER.OPTIMIZER_BUILDER`` over what ``distiller`` trains."""
    return OPTIMIZER_BUILDERS.get(cfg.SOLVER.OPTIMIZER_BUILDER)(cfg, distiller, pairs, report)


@OPTIMIZER_BUILDERS.register("Uniform")
def uniform(cfg: CfgNode, distiller: Distiller, pairs: Pairs, report: dict[str, Any] | None) -> Built:
    """One learning rate for every parameter, but for the head's and the biases' own factors."""
    return Built(make_optimizer(cfg, parameter_groups(cfg, distiller.learnable_parameters())))


def parameter_groups(
    cfg: CfgNode, named: Iterable[tuple[str, nn.Parameter]], tier_of: Callable[[str], tuple[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Group parameters that share a learning rate and a weight decay.

    Args:
        named: (name, parameter) of all that is trained.
        tier_of: name → (tier, learning-rate factor); every parameter has factor 1 without it.

    Returns:
        Groups with ``params``, ``lr``, ``base_lr``, ``weight_decay``, ``names`` and ``tier``. Weight decay is
        never scaled; ``BIAS_LR_FACTOR`` and ``FC_LR_TIMES`` multiply on top of the tier's factor.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in named:
        tier, factor = tier_of(name) if tier_of else ("all", 1.0)
        is_bias = name.endswith("bias")
        if is_bias:
            factor *= solver.BIAS_LR_FACTOR
        if solver.LARGE_FC_LR and name.startswith(HEAD_PREFIX):
            factor *= solver.FC_LR_TIMES
        rate, decay = solver.BASE_LR * factor, solver.WEIGHT_DECAY_BIAS if is_bias else solver.WEIGHT_DECAY
        empty = {"params": [], "names": [], "lr": rate, "base_lr": rate, "weight_decay": decay, "tier": tier}
        group = groups.setdefault((tier, rate, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(cfg: CfgNode, groups: list[dict[str, Any]]) -> Optimizer:
    """``SOLVER.OPTIMIZER_NAME`` over ``groups``.

    Raises:
        UserError: for an unknown name.
    """
    name = cfg.SOLVER.OPTIMIZER_NAME
    if name not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER_NAME '{name}' is not known; choose one of {', '.join(OPTIMIZERS)}")
    momentum = {"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}
    return OPTIMIZERS[name](groups, lr=cfg.SOLVER.BASE_LR, **momentum)
