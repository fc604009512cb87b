"""Values that have the right type but cannot work, alone or together."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from d3still.config.node import Config
from d3still.errors import UserError

logger = logging.getLogger(__name__)

COSINE, MULTI_STEP = "WarmupCosineAnnealingLR", "WarmupMultiStepLR"

CHOICES: dict[str, tuple[str, ...]] = {
    "EXPERIMENT.DEVICE": ("cuda", "cpu"),
    "EXPERIMENT.PRECISION": ("auto", "float32", "bfloat16", "float16"),
    "EXPERIMENT.TRIPLET_METHOD": ("batch_hard", "batch_soft", "batch_sample"),
    "DATASETS.SPLIT": ("test", "val"),
    "DATALOADER.SAMPLER": ("triplet", "softmax"),
    "DATALOADER.CACHE": ("none", "ram"),
    "DATALOADER.ON_BAD_IMAGE": ("raise", "skip"),
    "SOLVER.OPTIMIZER_NAME": ("SGD", "Adam", "AdamW"),
    "SOLVER.LR_WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.LR_DECAY_TYPE": (COSINE, MULTI_STEP),
    "TEST.TEST_METRIC": ("cosine", "euclidean"),
}

Rule = tuple[str, Callable[[Any], bool]]
POSITIVE: Rule = ("above 0", lambda value: value > 0)
NOT_NEGATIVE: Rule = ("0 or more", lambda value: value >= 0)
AT_LEAST_1: Rule = ("1 or more", lambda value: value >= 1)
AT_LEAST_2: Rule = ("2 or more", lambda value: value >= 2)
FRACTION: Rule = ("between 0 and 1", lambda value: 0 <= value <= 1)
SIZE: Rule = (
    "[height, width] in pixels, e.g. [256, 256]",
    lambda value: len(value) == 2 and min(value) >= 1,
)
THREE: Rule = ("three numbers, one a channel", lambda value: len(value) == 3)
THREE_POSITIVE: Rule = ("three numbers above 0", lambda value: len(value) == 3 and min(value) > 0)
STRIDE: Rule = ("1 or 2", lambda value: value in (1, 2))
STAGE: Rule = ("a stage from 1 to 4", lambda value: 1 <= value <= 4)
EPOCHS: Rule = ("at least one epoch, 0 or more", lambda value: bool(value) and min(value) >= 0)
RE_RANKING: Rule = (
    "[k1, k2, lambda] with k1 and k2 from 1 and lambda between 0 and 1",
    lambda value: min(value[:2]) >= 1 and 0 <= value[2] <= 1,
)
PIXELS: Rule = ("from 1 to 178956970, the most that Pillow opens", lambda value: 1 <= value <= 178_956_970)
CARD: Rule = ("one card's number, e.g. 0 (several cards: torchrun)", lambda value: value.isdigit())

RULES: dict[str, Rule] = {
    "EXPERIMENT.DEVICE_ID": CARD,
    "EXPERIMENT.TRIPLET_MARGIN": NOT_NEGATIVE,
    "EXPERIMENT.CE_LOSS_WEIGHT": NOT_NEGATIVE,
    "EXPERIMENT.TRIPLET_LOSS_WEIGHT": NOT_NEGATIVE,
    "DISTILLER.TEACHER_LAST_STRIDE": STRIDE,
    "DISTILLER.STUDENT_LAST_STRIDE": STRIDE,
    "ACD.ALPHA": NOT_NEGATIVE,
    "ACD.BETA": NOT_NEGATIVE,
    "ACD.TEMPERATURE": POSITIVE,
    "RAHO.RATIO": FRACTION,
    "RAHO.GAMMA": NOT_NEGATIVE,
    "RAHO.MAX_BATCHES": NOT_NEGATIVE,
    "VanillaKD.TEMPERATURE": POSITIVE,
    "CSD.TOPK": AT_LEAST_1,
    "CSD.TEMPERATURE_QUERY": POSITIVE,
    "CSD.TEMPERATURE_GALLERY": POSITIVE,
    "ROP.TOPK": AT_LEAST_1,
    "ROP.TEMPERATURE": POSITIVE,
    "D3.TOPK": AT_LEAST_2,
    "UGD.DISTILLATION_LAYER": STAGE,
    "INPUT.STUDENT_SIZE_TRAIN": SIZE,
    "INPUT.STUDENT_SIZE_TEST": SIZE,
    "INPUT.STUDENT_PADDING": NOT_NEGATIVE,
    "INPUT.TEACHER_SIZE_TRAIN": SIZE,
    "INPUT.TEACHER_SIZE_TEST": SIZE,
    "INPUT.TEACHER_PADDING": NOT_NEGATIVE,
    "INPUT.SIZE_TRAIN": SIZE,
    "INPUT.SIZE_TEST": SIZE,
    "INPUT.PADDING": NOT_NEGATIVE,
    "INPUT.PROB": FRACTION,
    "INPUT.RE_PROB": FRACTION,
    "INPUT.PIXEL_MEAN": THREE,
    "INPUT.PIXEL_STD": THREE_POSITIVE,
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "DATALOADER.NUM_INSTANCE": AT_LEAST_1,
    "DATALOADER.MAX_PIXELS": PIXELS,
    "SOLVER.IMS_PER_BATCH": AT_LEAST_1,
    "SOLVER.IMS_DISTILLATION_PER_BATCH": AT_LEAST_1,
    "SOLVER.MAX_EPOCHS": AT_LEAST_1,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.FC_LR_TIMES": NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": ("0 or more and below 1", lambda value: 0 <= value < 1),
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": NOT_NEGATIVE,
    "SOLVER.LR_WARMUP_EPOCHS": NOT_NEGATIVE,
    "SOLVER.LR_WARMUP_FACTOR": NOT_NEGATIVE,
    "SOLVER.LR_DECAY_GAMMA": POSITIVE,
    "SOLVER.LR_DECAY_STEPS": EPOCHS,
    "SOLVER.LR_DECAY_ETA_MIN_LR": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": AT_LEAST_1,
    "SOLVER.CHECKPOINT_STEPS": NOT_NEGATIVE,
    "SOLVER.LOG_PERIOD": AT_LEAST_1,
    "SOLVER.EVAL_PERIOD": AT_LEAST_1,
    "SOLVER.SEED": ("0 or more and below 2^32", lambda value: 0 <= value < 2**32),
    "TEST.IMS_PER_BATCH": AT_LEAST_1,
    "TEST.RE_RANKING_PARAMETER": RE_RANKING,
}
TOPK_SECTIONS = ("CSD", "ROP", "D3")  # baselines that take the TOPK nearest of the pair batch


def validate(cfg: Config) -> None:
    """Refuse what cannot work and warn of what is likely not meant.

    Raises:
        UserError: names where the value was written, the key and what to write.
    """
    values = cfg.flat()
    for key, options in CHOICES.items():
        if values[key] not in options:
            raise UserError(f"{cfg.origin(key)}: {key} is '{values[key]}'; choose {' | '.join(options)}")
    weights = {key: NOT_NEGATIVE for key in values if key.endswith(".KD_WEIGHT")}
    for key, (meaning, holds) in (RULES | weights).items():
        if not holds(values[key]):
            raise UserError(f"{cfg.origin(key)}: {key} is {values[key]}; it must be {meaning}")
    for key, problem in _cross_checks(cfg):
        raise UserError(f"{cfg.origin(key)}: {key} {problem}")
    _warn_of_unused_schedule(cfg)


def _cross_checks(cfg: Config) -> Iterator[tuple[str, str]]:
    """(key, what is wrong and what to do) for each clash between keys."""
    solver, loader = cfg.SOLVER, cfg.DATALOADER
    if loader.SAMPLER == "triplet":
        batch, images = solver.IMS_PER_BATCH, loader.NUM_INSTANCE
        if batch % images or batch < 2 * images:
            yield (
                "SOLVER.IMS_PER_BATCH",
                f"is {batch}; with DATALOADER.NUM_INSTANCE {images} images an identity it must be a multiple of "
                f"{images} and hold at least two identities, e.g. {max(2, batch // images) * images}",
            )
    kind = cfg.DISTILLER.TYPE
    baseline = cfg.ACD.BASELINE if kind == "ACD" else kind
    if kind == "ACD" and baseline in ("ACD", "NONE"):
        yield "ACD.BASELINE", f"is {baseline}; name the baseline of stage 1, e.g. ROP"
    pairs = solver.IMS_DISTILLATION_PER_BATCH
    topk = cfg[baseline].TOPK if baseline in TOPK_SECTIONS else 0
    if topk > pairs:
        yield (
            f"{baseline}.TOPK",
            f"is {topk}, more than the pair batch holds; set it to at most SOLVER.IMS_DISTILLATION_PER_BATCH ({pairs})",
        )
    name = PurePath(cfg.OUTPUT_DIR.EXPERIMENT_NAME)
    if name.is_absolute() or ".." in name.parts:
        yield "OUTPUT_DIR.EXPERIMENT_NAME", f"is '{name}'; give a name below OUTPUT_DIR.ROOT_PATH, e.g. veri/mine"
    yield from _camera_pattern_problems(cfg.DATASETS.CAMERA_PATTERN)


def _camera_pattern_problems(pattern: str) -> Iterator[tuple[str, str]]:
    try:
        has_camera = not pattern or re.compile(pattern).groups >= 1
    except re.error as error:
        yield "DATASETS.CAMERA_PATTERN", f"is '{pattern}', not a regular expression ({error}); correct it"
        return
    if not has_camera:
        yield "DATASETS.CAMERA_PATTERN", f"is '{pattern}'; put the camera in parentheses, e.g. '_c(\\d+)'"


def _warn_of_unused_schedule(cfg: Config) -> None:
    """A shortened run may end before its learning rate falls; that is allowed, but seldom meant."""
    solver = cfg.SOLVER
    ends = f"SOLVER.MAX_EPOCHS {solver.MAX_EPOCHS} ends before"
    if solver.LR_WARMUP_EPOCHS >= solver.MAX_EPOCHS:
        logger.warning("%s warm-up does (SOLVER.LR_WARMUP_EPOCHS %d)", ends, solver.LR_WARMUP_EPOCHS)
    elif min(solver.LR_DECAY_STEPS) >= solver.MAX_EPOCHS:
        logger.warning("%s the learning rate falls (SOLVER.LR_DECAY_STEPS %s)", ends, solver.LR_DECAY_STEPS)
