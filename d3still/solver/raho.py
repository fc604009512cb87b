"""RAHO: each block of the gallery network learns at a rate that its importance sets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

from yacs.config import CfgNode

from d3still.config.rules import FRACTION, NOT_NEGATIVE
from d3still.distillers.acd.analysis import measure_importance
from d3still.distillers.base import Distiller, Pairs
from d3still.errors import UserError
from d3still.solver.optimizers import OPTIMIZER_BUILDERS, Built, make_optimizer, parameter_groups

logger = logging.getLogger(__name__)

# METHOD, RAHO: the power of γ on each tier's learning rate. All that is in no tier learns like "important".
TIER_POWERS = {"unimportant_at_both": 0, "unimportant_at_high_resolution_only": 1, "important": 2}


@OPTIMIZER_BUILDERS.register(
    "RAHO",
    defaults={
        "RATIO": (0.3, FRACTION),  # p, the share of scored blocks called unimportant
        "GAMMA": (0.05, NOT_NEGATIVE),  # learning-rate factor a tier
        "CROSS_RESOLUTION": True,  # also score blocks on low-resolution images
        "MAX_BATCHES": (0, NOT_NEGATIVE),  # batches of the analysis; 0 = one whole pass
    },
)
def raho(cfg: CfgNode, distiller: Distiller, pairs: Pairs, report: dict[str, Any] | None) -> Built:
    """Learning rates lr, γ·lr and γ²·lr by block importance, measured on the pair batches (at most MAX_BATCHES).

    Raises:
        UserError: outside stage 2, where there is no gallery network to learn.
    """
    if distiller.learner != "gallery" or distiller.query is None:
        raise UserError("SOLVER.OPTIMIZER_BUILDER RAHO belongs to stage 2; set DISTILLER.TYPE: ACD, or use Uniform")
    if report is None:
        report = analyse(cfg, distiller, pairs)
        _log(report)
    tier_of = partial(tier_and_factor, report["groups"], cfg.RAHO.GAMMA)
    groups = parameter_groups(cfg, distiller.learnable_parameters(), tier_of)
    return Built(make_optimizer(cfg, groups), report)


def tier_and_factor(groups: Mapping[str, Iterable[str]], gamma: float, name: str) -> tuple[str, float]:
    """The tier of a parameter's block and the factor on its learning rate.

    Args:
        groups: tier → block names, of `BlockImportance.groups`.
        gamma: learning-rate factor a tier.
        name: of the parameter.
    """
    blocks = [(block, tier) for tier in TIER_POWERS for block in groups[tier]]
    tier = next((tier for block, tier in blocks if name.startswith(f"{block}.")), "important")
    return tier, gamma ** TIER_POWERS[tier]


def analyse(cfg: CfgNode, distiller: Distiller, pairs: Pairs) -> dict[str, Any]:
    """Scores and groups of the gallery network's blocks, as plain values: {"groups": …, "scores": …}."""
    batches = islice(pairs(), cfg.RAHO.MAX_BATCHES or None)
    importance = measure_importance(distiller.gallery, distiller.query, batches)
    groups = importance.groups(cfg.RAHO.RATIO, cfg.RAHO.CROSS_RESOLUTION)
    return {"groups": {tier: groups[tier] for tier in TIER_POWERS}, "scores": importance.scores()}


def _log(report: dict[str, Any]) -> None:
    for tier, power in TIER_POWERS.items():
        blocks = ", ".join(report["groups"][tier]) or "none"
        logger.info("RAHO: learning rate γ^%d · lr for %s: %s", power, tier.replace("_", " "), blocks)
