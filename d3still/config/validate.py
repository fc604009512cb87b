"""Values that have the right type but cannot work, alone or together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from d3still.config.node import Config
from d3still.config.sections import known_rules
from d3still.errors import UserError
from d3still.text import visible

logger = logging.getLogger(__name__)

# What tensors hold: a larger number is infinite, or no number at all, as soon as something is computed with it.
LARGEST = {float: (3.4028234e38, "what float32 holds"), int: (2**63 - 1, "what 64 bits hold")}


def validate(cfg: Config) -> None:
    """Refuse what cannot work and warn of what is likely not meant.

    Raises:
        UserError: names where the value was written, the key and what to write.
    """
    values = cfg.flat()
    for key, value in values.items():
        _check_magnitude(cfg, key, value)
    for key, rule in known_rules().items():
        if not rule.holds(values[key]):
            shown = f"'{visible(values[key])}'" if isinstance(values[key], str) else values[key]
            raise UserError(f"{cfg.origin(key)}: {key} is {shown}; it must be {rule.meaning}")
    for key, problem in _cross_checks(cfg):
        raise UserError(f"{cfg.origin(key)}: {key} {problem}")
    _warn_of_unused_schedule(cfg)


def _check_magnitude(cfg: Config, key: str, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        largest, meaning = LARGEST.get(type(number), (0, ""))
        if meaning and abs(number) > largest:
            raise UserError(f"{cfg.origin(key)}: {key} is {value}, more than {meaning}; choose a smaller number")


def _cross_checks(cfg: Config) -> Iterator[tuple[str, str]]:
    """(key, what is wrong and what to do) for each clash between keys."""
    solver, loader = cfg.SOLVER, cfg.DATALOADER
    balanced = {"IMS_PER_BATCH": loader.SAMPLER == "triplet"}
    balanced["IMS_DISTILLATION_PER_BATCH"] = loader.PAIR_SAMPLER == "identity"
    for key in filter(balanced.get, balanced):
        batch, images = solver[key], loader.NUM_INSTANCE
        if batch % images or batch < 2 * images:
            yield (
                f"SOLVER.{key}",
                f"is {batch}; with DATALOADER.NUM_INSTANCE {images} images an identity it must be a multiple of "
                f"{images} and hold at least two identities, e.g. {max(2, batch // images) * images}",
            )
    pairs, section = solver.IMS_DISTILLATION_PER_BATCH, _baseline(cfg)
    topk = cfg.get(section, {}).get("TOPK", 0)  # by custom, neighbours among the pair batch
    if topk > pairs:
        yield (
            f"{section}.TOPK",
            f"is {topk}, more than the pair batch holds; set it to at most SOLVER.IMS_DISTILLATION_PER_BATCH ({pairs})",
        )


def _baseline(cfg: Config) -> str:
    """The distiller whose loss is used: the one that DISTILLER.TYPE names, or that it wraps."""
    kind = cfg.DISTILLER.TYPE
    return cfg.get(kind, {}).get("BASELINE", kind)


def _warn_of_unused_schedule(cfg: Config) -> None:
    """A shortened run may end before its learning rate falls; that is allowed, but seldom meant."""
    solver = cfg.SOLVER
    ends = f"SOLVER.MAX_EPOCHS {solver.MAX_EPOCHS} ends before"
    if solver.LR_WARMUP_EPOCHS >= solver.MAX_EPOCHS:
        logger.warning("%s warm-up does (SOLVER.LR_WARMUP_EPOCHS %d)", ends, solver.LR_WARMUP_EPOCHS)
    elif min(solver.LR_DECAY_STEPS) >= solver.MAX_EPOCHS:
        logger.warning("%s the learning rate falls (SOLVER.LR_DECAY_STEPS %s)", ends, solver.LR_DECAY_STEPS)
