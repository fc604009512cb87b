"""Learning rate an epoch, as pure functions: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from yacs.config import CfgNode

from d3still.errors import UserError


@dataclass(frozen=True)
class Warmup:
    """A factor on the base rate before epoch ``epochs`` (METHOD, stage 0).

    ``linear`` rises from ``factor`` to 1, ``constant`` stays at ``factor``.
    """

    epochs: int = 0
    factor: float = 0.1
    method: str = "linear"

    def __call__(self, epoch: int) -> float:
        """The factor in epoch ``epoch``, counted from 0; 1 once warm-up is over."""
        if epoch >= self.epochs:
            return 1.0
        return self.factor if self.method == "constant" else self.factor + (1 - self.factor) * epoch / self.epochs


@dataclass(frozen=True)
class WarmupCosine:
    """Constant until ``delay``, then a half cosine to ``minimum`` at ``max_epochs``.

    ``minimum`` is the same absolute rate for every parameter group.
    """

    max_epochs: int
    delay: int
    minimum: float
    warmup: Warmup

    def __call__(self, epoch: int, base_rate: float) -> float:
        """Learning rate of a group with ``base_rate`` in epoch ``epoch``, counted from 0."""
        if epoch < self.warmup.epochs:
            return base_rate * self.warmup(epoch)
        if epoch < self.delay:
            return base_rate
        progress = (epoch - self.delay) / (self.max_epochs - self.delay)
        return self.minimum + (base_rate - self.minimum) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupMultiStep:
    """Times ``gamma`` at each of the ``milestones``, with warm-up."""

    milestones: tuple[int, ...]
    gamma: float
    warmup: Warmup

    def __call__(self, epoch: int, base_rate: float) -> float:
        """Learning rate of a group with ``base_rate`` in epoch ``epoch``, counted from 0."""
        return base_rate * self.warmup(epoch) * self.gamma ** bisect_right(sorted(self.milestones), epoch)


Schedule = Callable[[int, float], float]


def build_schedule(cfg: CfgNode) -> Schedule:
    """The schedule of ``SOLVER.LR_DECAY_TYPE``; cosine starts at the first of ``LR_DECAY_STEPS``.

    Raises:
        UserError: for an unknown type.
    """
    solver = cfg.SOLVER
    warmup = Warmup(solver.LR_WARMUP_EPOCHS, solver.LR_WARMUP_FACTOR, solver.LR_WARMUP_METHOD)
    if solver.LR_DECAY_TYPE == "WarmupCosineAnnealingLR":
        return WarmupCosine(solver.MAX_EPOCHS, solver.LR_DECAY_STEPS[0], solver.LR_DECAY_ETA_MIN_LR, warmup)
    if solver.LR_DECAY_TYPE == "WarmupMultiStepLR":
        return WarmupMultiStep(tuple(solver.LR_DECAY_STEPS), solver.LR_DECAY_GAMMA, warmup)
    raise UserError(
        f"SOLVER.LR_DECAY_TYPE '{solver.LR_DECAY_TYPE}' is not known; "
        "choose WarmupCosineAnnealingLR or WarmupMultiStepLR"
    )


def set_learning_rates(optimizer: Optimizer, schedule: Schedule, epoch: int) -> None:
    """Give every parameter group its rate for ``epoch``, from its own ``base_lr``, at first its ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = schedule(epoch, group.setdefault("base_lr", group["lr"]))
