"""Configs written for the published code: the same meaning under the keys of this schema.

Two codebases published configs: D3Still (stages 0 and 1) and ACD, which adds keys for stage 2. A file counts
as published when it has a key that only those have, builds on no other file, and does not name ACD as its
distiller, which only this package does. What such a file leaves out has the value that its own codebase
gives it. In any other file an old key is just another name for the present one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from d3still.config.coerce import coerce, unquote
from d3still.config.reader import Layer, Setting, shown
from d3still.config.sections import known_defaults
from d3still.errors import UserError

logger = logging.getLogger(__name__)

TYPE_KEY = "DISTILLER.TYPE"
AMP_KEY = "EXPERIMENT.CUDA_AMP"
ROOT_KEY = "DATASETS.ROOT_DIR"
BASELINE_KEY, BUILDER_KEY = "ACD.BASELINE", "SOLVER.OPTIMIZER_BUILDER"
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
PUBLISHED_DEFAULT = "published default"  # in place of a file and line


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
    published = not layer.bases and _type_of(settings) != ACD_TYPE
    of_acd = published and bool(ACD_ONLY & settings.keys())
    if of_acd:
        _fill_in(translated, notes)
    if (of_acd or STAGE_2_KEYS.keys() & settings.keys()) and _type_of(settings) not in (ACD_TYPE, NO_DISTILLER):
        _make_stage_2(translated, notes)
    _restore_raml(translated, notes)
    if ROOT_KEY in translated and not unquote(str(translated[ROOT_KEY].value)):
        del translated[ROOT_KEY]
        notes.left_out.append(f"{ROOT_KEY} (empty)")
    notes.log(f"{shown(layer.file)} uses keys of the published code")
    return translated


def translate_overrides(settings: dict[str, Setting]) -> dict[str, Setting]:
    """Command-line settings under the keys of this schema."""
    notes = _Notes()
    translated = _rename(settings, notes)
    notes.log("the command line uses keys of the published code")
    return translated


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


def _fill_in(translated: dict[str, Setting], notes: _Notes) -> None:
    """ACD's own defaults for the keys that a file of its codebase leaves out."""
    for key, value in ACD_DEFAULTS.items():
        if key not in translated:
            translated[key] = Setting(value, PUBLISHED_DEFAULT)
            notes.filled_in.append(f"{key} {value}")


def _make_stage_2(translated: dict[str, Setting], notes: _Notes) -> None:
    """TYPE named the baseline; here it names ACD, which wraps the baseline, and RAHO is a builder's name."""
    kind = translated[TYPE_KEY]
    if BASELINE_KEY in translated:
        raise UserError(
            f"{kind.where}: with keys of the published stage 2, {TYPE_KEY} {kind.value} is the published name of "
            f"{BASELINE_KEY}, which is set too; write {TYPE_KEY}: {ACD_TYPE}"
        )
    translated[BASELINE_KEY], translated[TYPE_KEY] = kind, Setting(ACD_TYPE, kind.where)
    translated.setdefault(BUILDER_KEY, Setting("RAHO", PUBLISHED_DEFAULT))
    notes.read_as.append(f"{TYPE_KEY} {kind.value} in stage 2 = {ACD_TYPE} over {kind.value} with RAHO")


def _restore_raml(translated: dict[str, Setting], notes: _Notes) -> None:
    """The published code used λ1 for both of RAML's terms, whatever λ2 was."""
    first, second = "RAML.LAMBDA1", "RAML.LAMBDA2"
    if not {first, second} & translated.keys():
        return
    ran = translated.get(first, Setting(known_defaults()[first], PUBLISHED_DEFAULT))
    if second in translated:
        notes.read_as.append(f"{second} = {ran.value} (LAMBDA1, which ran for both)")
    translated[second] = ran
