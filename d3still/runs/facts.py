"""What a config says about a run: its stage, its pair of networks, its baseline, which variant of ACD it is.

All functions take the config as a plain tree of mappings, so that a run's frozen ``config.yaml`` is enough,
also where the user's own code that the run was trained with is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from d3still.config.sections import known_defaults, leaves
from d3still.errors import UserError

Tree = Mapping[str, Any]

BASELINE, LONGER, ACD, FINETUNE, ACD_UNIFORM = "baseline", "longer", "acd", "finetune", "acd_uniform"
#: What a variant of stage 2 is: its title, its OPTIMIZER_BUILDER, and which of α, β and the baseline's weight are on.
STAGE_2 = {
    ACD: ("+ ACD", "RAHO", (True, True, True)),
    FINETUNE: ("+ fine-tuning only", "RAHO", (False, False, False)),
    ACD_UNIFORM: ("+ ACD, one learning rate", "Uniform", (True, True, True)),
    "raho_only": ("+ RAHO, no logits terms", "RAHO", (False, False, True)),
    "alpha_only": ("+ ACD without β", "RAHO", (True, False, True)),
    "beta_only": ("+ ACD without α", "RAHO", (False, True, True)),
    "logits_only": ("+ ACD without the baseline's loss", "RAHO", (True, True, False)),
}
VARIANTS = (BASELINE, LONGER, *STAGE_2)
VARIANT_TITLES = {LONGER: "+ stage 1 continued", **{name: title for name, (title, _, _) in STAGE_2.items()}}
LONGER_EPOCHS = 3  # of stage 1 take about as long as one of stage 2, which trains the heavier network
LONGER_RATE = 0.4  # of stage 1's rate, falling to 0 by a cosine
SWEEP = "sweep"  # folder below an experiment that holds one run for each value of a sweep
RUN_WEIGHTS = ("last.pth", "best.pth")  # files of a run; other names are weights of elsewhere, such as ImageNet's
WEIGHT_KEYS = {0: (), 1: ("TEACHER_MODEL_PATH",), 2: ("TEACHER_MODEL_PATH", "STUDENT_PRETRAIN_PATH")}


def stage_of(config: Tree) -> int:
    """0: gallery network alone, 1: a baseline, 2: ACD."""
    return {"NONE": 0, "ACD": 2}.get(config["DISTILLER"]["TYPE"], 1)


def dataset_of(config: Tree) -> str:
    """The dataset, and the split where it is not the test split."""
    datasets = config["DATASETS"]
    return datasets["NAMES"] + ("" if datasets["SPLIT"] == "test" else f"[{datasets['SPLIT']}]")


def networks_of(config: Tree) -> str:
    """Gallery and query network with their test sizes, ``ResNet101_256x256__ResNet18_128x128``; stage 0: one."""
    names = []
    for part in ("gallery", "query")[: 1 if stage_of(config) == 0 else 2]:
        prefix, (height, width) = side_of(config, part)
        names.append(f"{config['DISTILLER'][f'{prefix}_NAME']}_{height}x{width}")
    return "__".join(names)


def side_of(config: Tree, part: str) -> tuple[str, tuple[int, int]]:
    """How DISTILLER's keys of the query or the gallery network begin, and its (height, width) at test.

    The only network of stage 0 has the keys of a query network, and is the gallery network of the later stages.
    """
    stage, inputs = stage_of(config), config["INPUT"]
    if stage == 0 or part == "query":
        return "STUDENT", tuple(inputs["STUDENT_SIZE_TEST"])
    return "TEACHER", tuple(inputs["SIZE_TEST" if stage == 2 else "TEACHER_SIZE_TEST"])


def pair_of(config: Tree) -> str:
    """What a table is about: the dataset and the two networks, ``emoji/ResNet18_64x64__ResNet18_32x32``."""
    return f"{dataset_of(config)}/{networks_of(config)}"


def max_pixels_of(config: Tree) -> int:
    """DATALOADER.MAX_PIXELS; the default where a config, older than the key or not of a run, does not say it."""
    section = config.get("DATALOADER")
    value = section.get("MAX_PIXELS") if isinstance(section, Mapping) else None
    return value if isinstance(value, int) else known_defaults()["DATALOADER.MAX_PIXELS"]


def baseline_of(config: Tree) -> str:
    """The baseline of stage 1 or under ACD, by its registered name."""
    return config["ACD"]["BASELINE"] if stage_of(config) == 2 else config["DISTILLER"]["TYPE"]


def section_of(config: Tree) -> str | None:
    """The config section that holds the KD_WEIGHT of a run's baseline: FITNET for FitNet; None where none does.

    It is the one that the baseline was registered with. Of a user's baseline whose code is not at hand it is the
    section of its name, else the only one that no known baseline has.
    """
    baseline = baseline_of(config)
    weighing = [name for name, section in config.items() if isinstance(section, Mapping) and "KD_WEIGHT" in section]
    from d3still.distillers import DISTILLERS  # here, since the names above serve help texts, which need no torch

    if baseline in DISTILLERS:
        likely = [DISTILLERS.get(baseline).section]
    else:
        known = {DISTILLERS.get(name).section for name in DISTILLERS}
        unknown = [name for name in weighing if name not in known]
        likely = [name for name in unknown if name.lower() == baseline.lower()] or unknown
    found = [name for name in likely if name in weighing]
    return found[0] if len(found) == 1 else None


def variant_of(config: Tree) -> str:
    """Which of `VARIANTS` a run of stage 1 or 2 is, told by its settings; else its own file's name."""
    if stage_of(config) == 1:
        started = PurePosixPath(config["DISTILLER"]["STUDENT_PRETRAIN_PATH"]).name
        return LONGER if started in RUN_WEIGHTS else BASELINE
    section = section_of(config)
    weight = 1.0 if section is None else config[section]["KD_WEIGHT"]  # of its own it has none
    terms = tuple(bool(factor) for factor in (config["ACD"]["ALPHA"], config["ACD"]["BETA"], weight))
    made = config["SOLVER"]["OPTIMIZER_BUILDER"], terms
    stem = PurePosixPath(config["OUTPUT_DIR"]["EXPERIMENT_NAME"]).name
    return next((name for name, (_, *what) in STAGE_2.items() if tuple(what) == made), stem)


def variant_settings(config: Tree, variant: str, uniform_lr: float | None = None) -> dict[str, Any]:
    """The settings that turn a stage-2 config into one of the controls.

    Args:
        config: of stage 2.
        variant: one of `STAGE_2`.
        uniform_lr: the one rate of ``acd_uniform``; None takes BASE_LR · γ, the middle of RAHO's three.

    Returns:
        SECTION.KEY → value, with the variant's own OUTPUT_DIR.EXPERIMENT_NAME; empty for ``acd``.

    Raises:
        UserError: a variant without the loss of a baseline that has no KD_WEIGHT.
    """
    if variant == ACD:
        return {}
    _, builder, (alpha, beta, baseline) = STAGE_2[variant]
    settings: dict[str, Any] = {}
    if builder == "Uniform":
        rate = config["SOLVER"]["BASE_LR"] * config["RAHO"]["GAMMA"] if uniform_lr is None else uniform_lr
        settings |= {"SOLVER.OPTIMIZER_BUILDER": builder, "SOLVER.BASE_LR": rate}
    if not alpha:
        settings["ACD.ALPHA"] = 0.0
    if not beta:
        settings["ACD.BETA"] = 0.0
    if not baseline:
        section = section_of(config)
        if section is None:
            raise UserError(
                f"the baseline {baseline_of(config)} has no KD_WEIGHT, which the variant {variant} sets to 0; "
                "register it with defaults={'KD_WEIGHT': 1.0}, or leave the variant out"
            )
        settings[f"{section}.KD_WEIGHT"] = 0.0
    name = config["OUTPUT_DIR"]["EXPERIMENT_NAME"]
    return {**settings, "OUTPUT_DIR.EXPERIMENT_NAME": f"{name}-{variant}"}


def longer_settings(baseline: Tree, acd: Tree) -> dict[str, Any]:
    """The settings that let stage 1 go on from its result for about the time that stage 2 takes.

    Args:
        baseline: the config of stage 1.
        acd: that of stage 2, which names stage 1's result.
    """
    solver = baseline["SOLVER"]
    return {
        "DISTILLER.STUDENT_PRETRAIN_PATH": acd["DISTILLER"]["STUDENT_PRETRAIN_PATH"],
        "SOLVER.BASE_LR": solver["BASE_LR"] * LONGER_RATE,
        "SOLVER.MAX_EPOCHS": acd["SOLVER"]["MAX_EPOCHS"] * LONGER_EPOCHS,
        "SOLVER.LR_WARMUP_EPOCHS": 0,
        "SOLVER.LR_DECAY_TYPE": "WarmupCosineAnnealingLR",
        "SOLVER.LR_DECAY_STEPS": [0],
        "OUTPUT_DIR.EXPERIMENT_NAME": f"{baseline['OUTPUT_DIR']['EXPERIMENT_NAME']}-{LONGER}",
    }


def differences(one: Tree, other: Tree) -> list[tuple[str, Any, Any]]:
    """(key, value in one, value in the other) of every key that differs; None where a side lacks it.

    Keys that neither run reads, such as another baseline's weight, are no difference. A run that is older than a key
    did what the key's default says.
    """
    from d3still.distillers import without_idle_sections

    before, after = (dict(leaves(tree)) for tree in without_idle_sections(one, other))
    keys, defaults = sorted({*before, *after}), known_defaults()
    before, after = ({key: found.get(key, defaults.get(key)) for key in keys} for found in (before, after))
    return [(key, before[key], after[key]) for key in keys if before[key] != after[key]]
