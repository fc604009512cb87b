"""Configs written for the published code: the same meaning under the keys of this schema.

Two codebases published configs: D3Still (stages 0 and 1) and ACD, which adds keys for stage 2. A file counts
as published when it has a key that only those have and nothing of what came since. Its settings are
translated, and what it leaves out takes the value that its own codebase gives it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from d3still.config.coerce import coerce, unquote
from d3still.config.reader import Layer, Setting, shown
from d3still.errors import UserError

logger = logging.getLogger(__name__)

TYPE_KEY = "DISTILLER.TYPE"
AMP_KEY = "EXPERIMENT.CUDA_AMP"
ROOT_KEY = "DATASETS.ROOT_DIR"
ACD_TYPE, NO_DISTILLER = "ACD", "NONE"

# Keys that ACD added for stage 2, and what they are called here.
STAGE_2_KEYS = {
    "DISTILLER.TEACHER_ALPHA": "ACD.ALPHA",
    "DISTILLER.TEACHER_BETA": "ACD.BETA",
    "DISTILLER.TEACHER_TEMPERATURE": "ACD.TEMPERATURE",
    "DISTILLER.TEACHER_RATIO": "RAHO.RATIO",
    "DISTILLER.CROSS_RESOLUTION": "RAHO.CROSS_RESOLUTION",
    "SOLVER.UNIMPORTANT_LR_TIMES": "RAHO.GAMMA",
}
RENAMED = {**STAGE_2_KEYS, AMP_KEY: "EXPERIMENT.PRECISION"}

# Keys without a counterpart, and why.
DROPPED = {
    "SOLVER.TRAINER": "follows from DISTILLER.TYPE",
    "TEST.WEIGHT": "the run's own last.pth is tested; TEST.WEIGHTS names another file",
    "SSRL.KD_WEIGHT": "no such baseline",
    "SSRL.SR_WEIGHT": "no such baseline",
    "SSRL.FEAT_WEIGHT": "no such baseline",
}
PUBLISHED_ONLY = {*RENAMED, *DROPPED}
ACD_ONLY = {
    *STAGE_2_KEYS,
    *(key for key in DROPPED if key.startswith("SSRL.")),
    "INPUT.SIZE_TRAIN",
    "INPUT.SIZE_TEST",
    "INPUT.PADDING",
}
# Keys of this schema that a published file cannot have.
NEW_SECTIONS = ("ACD.", "RAHO.")
NEW_KEYS = ("SOLVER.OPTIMIZER_BUILDER", "EXPERIMENT.PRECISION", "TEST.WEIGHTS")

# Where ACD's own defaults differ from this schema's (tests/conformance/published_defaults.json).
ACD_DEFAULTS: dict[str, Any] = {
    "DISTILLER.STUDENT_NAME": "ResNet101",
    "FITNET.KD_WEIGHT": 1.0,
    "ACD.ALPHA": 1.0,
    "ACD.BETA": 1.0,
    "RAHO.GAMMA": 1.0,
    "INPUT.SIZE_TRAIN": [64, 64],
    "INPUT.SIZE_TEST": [64, 64],
    "INPUT.PADDING": 2,
}
LAMBDA1_DEFAULT = 0.7482


@dataclass
class _Notes:
    """What a translation did, for one line of the log."""

    read_as: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    filled_in: list[str] = field(default_factory=list)

    def log(self, subject: str) -> None:
        parts = ("read as", self.read_as), ("left out", self.left_out), ("published defaults", self.filled_in)
        told = "; ".join(f"{title}: {', '.join(items)}" for title, items in parts if items)
        if told:
            logger.info("%s: %s", subject, told)


def translate(layer: Layer) -> dict[str, Setting]:
    """The layer's settings under the keys of this schema; what changed is logged in one line.

    Raises:
        UserError: when a setting is given under both its published and its present name.
    """
    settings, notes = layer.settings, _Notes()
    if not PUBLISHED_ONLY & settings.keys():
        return settings
    translated = _rename(settings, notes)
    if _is_published(layer):
        _restore_meaning(settings, translated, notes)
    notes.log(f"{shown(layer.file)} uses keys of the published code")
    return translated


def translate_overrides(settings: dict[str, Setting]) -> dict[str, Setting]:
    """Command-line settings under the keys of this schema."""
    notes = _Notes()
    translated = _rename(settings, notes)
    notes.log("the command line uses keys of the published code")
    return translated


def _is_published(layer: Layer) -> bool:
    newer = any(key.startswith(NEW_SECTIONS) or key in NEW_KEYS for key in layer.settings)
    return not newer and not layer.bases and _type_of(layer.settings) != ACD_TYPE


def _type_of(settings: dict[str, Setting]) -> str:
    return unquote(str(settings[TYPE_KEY].value)) if TYPE_KEY in settings else NO_DISTILLER


def _rename(settings: dict[str, Setting], notes: _Notes) -> dict[str, Setting]:
    """Each setting under its present key, in the order given; those without a counterpart are left out."""
    translated: dict[str, Setting] = {}
    for key, setting in settings.items():
        if key in DROPPED:
            notes.left_out.append(f"{key} ({DROPPED[key]})")
            continue
        name = RENAMED.get(key, key)
        if name != key:
            if name in settings:
                raise UserError(
                    f"{setting.where}: {key} is the published name of {name}, which is set too; keep one of them"
                )
            if key == AMP_KEY:
                setting = Setting("auto" if coerce(key, setting, True) else "float32", setting.where)
            notes.read_as.append(f"{key} = {name}" + (f" {setting.value}" if key == AMP_KEY else ""))
        translated[name] = setting
    return translated


def _restore_meaning(settings: dict[str, Setting], translated: dict[str, Setting], notes: _Notes) -> None:
    """What a published file says by being one: its stage, its codebase's defaults, how RAML ran."""
    where = "published default"
    if ACD_ONLY & settings.keys():
        for key, value in ACD_DEFAULTS.items():
            if key not in translated:
                translated[key] = Setting(value, where)
                notes.filled_in.append(f"{key} {value}")
        baseline = _type_of(settings)
        if baseline != NO_DISTILLER:
            translated["ACD.BASELINE"] = settings[TYPE_KEY]
            translated[TYPE_KEY] = Setting(ACD_TYPE, settings[TYPE_KEY].where)
            translated["SOLVER.OPTIMIZER_BUILDER"] = Setting("RAHO", where)
            notes.read_as.append(f"{TYPE_KEY} {baseline} in stage 2 = ACD over {baseline} with RAHO")
    if "RAML.LAMBDA2" in translated:
        translated["RAML.LAMBDA2"] = translated.get("RAML.LAMBDA1", Setting(LAMBDA1_DEFAULT, where))
        notes.read_as.append(f"RAML.LAMBDA2 = {translated['RAML.LAMBDA2'].value} (LAMBDA1, which ran for both)")
    elif "RAML.LAMBDA1" in translated:
        translated["RAML.LAMBDA2"] = translated["RAML.LAMBDA1"]
    if ROOT_KEY in translated and not unquote(str(translated[ROOT_KEY].value)):
        del translated[ROOT_KEY]
        notes.left_out.append(f"{ROOT_KEY} (empty)")
