"""Configs written for the published code: the same meaning under the keys of this schema.

Two codebases published configs: D3Still (stages 0 and 1) and ACD, which adds keys for stage 2. A file counts
as published when it has a key that only those have, builds on no other file, and does not name ACD as its
distiller, which only this package does. What such a file leaves out has the value that its own codebase
gives it. In any other file an old key is just another name for the present one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from d3still.config.coerce import QUOTES, coerce, unquote
from d3still.config.reader import COMMAND_LINE, Layer, Setting, shown
from d3still.config.sections import known_defaults
from d3still.errors import UserError

logger = logging.getLogger(__name__)

TYPE_KEY = "DISTILLER.TYPE"
AMP_KEY = "EXPERIMENT.CUDA_AMP"
SAMPLER_KEY = "DATALOADER.SAMPLER"
CARD_KEY = "EXPERIMENT.DEVICE_ID"
WEIGHT_KEY = "TEST.WEIGHT"  # the epoch to test: the last one in every published file
ROOT_KEY = "DATASETS.ROOT_DIR"
BASELINE_KEY, BUILDER_KEY = "ACD.BASELINE", "SOLVER.OPTIMIZER_BUILDER"
LAMBDA1_KEY, LAMBDA2_KEY = "RAML.LAMBDA1", "RAML.LAMBDA2"
PUBLISHED_LAMBDA2 = 0.6778  # in every published file, where it changed nothing
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
    WEIGHT_KEY: "the run's own last.pth is tested; TEST.WEIGHTS names another file",
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


def translate(layer: Layer, before: Mapping[str, Setting]) -> dict[str, Setting]:
    """The layer's settings under the keys of this schema; what changed is logged in one line.

    Args:
        layer: one file.
        before: what is set already, under the keys of this schema: the files that the layer builds on.

    Raises:
        UserError: when a setting is given under both its published and its present name.
    """
    settings, notes = layer.settings, _Notes()
    translated = _rename(settings, notes)
    kind = _type_of(settings)
    published = bool(PUBLISHED_ONLY & settings.keys()) and not layer.bases and kind != ACD_TYPE
    of_acd = published and bool(ACD_ONLY & settings.keys())
    if of_acd:
        _fill_in(translated, notes)
    if (of_acd or STAGE_2_KEYS.keys() & settings.keys()) and kind not in (ACD_TYPE, NO_DISTILLER):
        translated.setdefault(BUILDER_KEY, Setting("RAHO", PUBLISHED_DEFAULT))
        _make_stage_2(translated, notes)
    if published:
        _restore_raml(translated, notes)
        _default_root(translated, notes)
    _set_over_published(translated, before, notes)
    notes.log(f"{shown(layer.file)} uses keys of the published code")
    return translated


def translate_overrides(settings: dict[str, Setting], before: Mapping[str, Setting]) -> dict[str, Setting]:
    """Command-line settings under the keys of this schema; ``before`` is what the files set.

    What is given here holds, also where a published file's own value was read as another one.
    """
    notes = _Notes()
    translated = _rename(settings, notes)
    _default_root(translated, notes)
    _set_over_published(translated, before, notes)
    notes.log("the command line, over a published config or with its keys")
    return translated


def _type_of(settings: dict[str, Setting]) -> str:
    return unquote(str(settings[TYPE_KEY].value)) if TYPE_KEY in settings else NO_DISTILLER


def _rename(settings: dict[str, Setting], notes: _Notes) -> dict[str, Setting]:
    """Each setting under its present key, in the order given; those without a counterpart are left out."""
    translated: dict[str, Setting] = {}
    for key, setting in settings.items():
        if key == WEIGHT_KEY and setting.where == COMMAND_LINE:  # asked for, not a file's habit
            key, setting = "TEST.WEIGHTS", Setting(f"{{run}}/epoch_{setting.value}.pth", COMMAND_LINE)
            notes.read_as.append(f"{WEIGHT_KEY} = {key} {setting.value}")
        if key == SAMPLER_KEY and setting.value == "random":
            setting = replace(setting, value="softmax")
            notes.read_as.append(f"{SAMPLER_KEY} random = softmax")
        if key == CARD_KEY:
            setting = _without_stray_quotes(setting, notes)
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


def _without_stray_quotes(card: Setting, notes: _Notes) -> Setting:
    """Published files say ``"0'"``: a number with one quote too many is that number."""
    text = unquote(str(card.value)).strip()
    number = text.strip(QUOTES + " ")
    if number == text or not number.isdigit():
        return card
    notes.read_as.append(f"{CARD_KEY} {card.value} = {number} (one quote too many)")
    return replace(card, value=number)


def _default_root(translated: dict[str, Setting], notes: _Notes) -> None:
    """An empty root was the published code's own place; here it is this project's."""
    if ROOT_KEY in translated and not unquote(str(translated[ROOT_KEY].value)):
        translated[ROOT_KEY] = Setting(known_defaults()[ROOT_KEY], translated[ROOT_KEY].where)
        notes.read_as.append(f"{ROOT_KEY} (empty) = {translated[ROOT_KEY].value}")


def _fill_in(translated: dict[str, Setting], notes: _Notes) -> None:
    """ACD's own defaults for the keys that a file of its codebase leaves out."""
    for key, value in ACD_DEFAULTS.items():
        if key not in translated:
            translated[key] = Setting(value, PUBLISHED_DEFAULT)
            notes.filled_in.append(f"{key} {value}")


def _make_stage_2(translated: dict[str, Setting], notes: _Notes) -> None:
    """TYPE named the baseline; here it names ACD, which wraps the baseline."""
    kind = translated[TYPE_KEY]
    if BASELINE_KEY in translated:
        raise UserError(
            f"{kind.where}: with keys of the published stage 2, {TYPE_KEY} {kind.value} is the published name of "
            f"{BASELINE_KEY}, which is set too; write {TYPE_KEY}: {ACD_TYPE}"
        )
    translated[BASELINE_KEY], translated[TYPE_KEY] = kind, Setting(ACD_TYPE, kind.where, published=kind.value)
    notes.read_as.append(f"{TYPE_KEY} {kind.value} in stage 2 = {ACD_TYPE} over {kind.value} with RAHO")


def _restore_raml(translated: dict[str, Setting], notes: _Notes) -> None:
    """The published code used λ1 for both of RAML's terms, whatever λ2 was; but another λ2 than theirs is meant."""
    theirs = translated.get(LAMBDA2_KEY, Setting(PUBLISHED_LAMBDA2, PUBLISHED_DEFAULT))
    if coerce(LAMBDA2_KEY, theirs, PUBLISHED_LAMBDA2) != PUBLISHED_LAMBDA2:
        return
    ran = translated.get(LAMBDA1_KEY, Setting(known_defaults()[LAMBDA1_KEY], PUBLISHED_DEFAULT))
    if {LAMBDA1_KEY, LAMBDA2_KEY} & translated.keys():
        notes.read_as.append(f"{LAMBDA2_KEY} = {ran.value} (LAMBDA1 ran for both; {PUBLISHED_LAMBDA2} had no effect)")
    translated[LAMBDA2_KEY] = replace(ran, published=PUBLISHED_LAMBDA2)


def _set_over_published(translated: dict[str, Setting], before: Mapping[str, Setting], notes: _Notes) -> None:
    """A key that is set again over a published file whose value for it was read as something else.

    ``DISTILLER.TYPE`` over a published stage 2 is the baseline there too, and NONE ends that stage; RAML's λ2 goes
    with a new λ1, as it ran.
    """

    def was_read_otherwise(key: str) -> bool:
        return key in before and before[key].published is not None

    if TYPE_KEY in translated and was_read_otherwise(TYPE_KEY):
        kind = _type_of(translated)
        if kind == NO_DISTILLER:
            translated.setdefault(BUILDER_KEY, Setting(known_defaults()[BUILDER_KEY], translated[TYPE_KEY].where))
        elif kind != ACD_TYPE:
            _make_stage_2(translated, notes)
    if LAMBDA1_KEY in translated and LAMBDA2_KEY not in translated and was_read_otherwise(LAMBDA2_KEY):
        translated[LAMBDA2_KEY] = replace(translated[LAMBDA1_KEY], published=PUBLISHED_LAMBDA2)
        notes.read_as.append(f"{LAMBDA2_KEY} = {translated[LAMBDA1_KEY].value} (LAMBDA1 ran for both)")
