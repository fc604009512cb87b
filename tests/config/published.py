"""What a published config means under this project's keys, from its record and the published defaults alone."""

import json
from pathlib import Path

CONFORMANCE = Path(__file__).parents[1] / "conformance"
SETTINGS = json.loads((CONFORMANCE / "published_settings.json").read_text())
_DEFAULTS = json.loads((CONFORMANCE / "published_defaults.json").read_text())
D3STILL_DEFAULTS = _DEFAULTS["D3Still"]
ACD_DEFAULTS = D3STILL_DEFAULTS | _DEFAULTS["ACD_differs_or_adds"]

# DESIGN, "Config": where the keys of stage 2 went.
STAGE_2 = {
    "ACD.ALPHA": "DISTILLER.TEACHER_ALPHA",
    "ACD.BETA": "DISTILLER.TEACHER_BETA",
    "ACD.TEMPERATURE": "DISTILLER.TEACHER_TEMPERATURE",
    "RAHO.RATIO": "DISTILLER.TEACHER_RATIO",
    "RAHO.CROSS_RESOLUTION": "DISTILLER.CROSS_RESOLUTION",
    "RAHO.GAMMA": "SOLVER.UNIMPORTANT_LR_TIMES",
    "ACD.BASELINE": "DISTILLER.TYPE",
}
# Published keys that mean nothing here: who trains follows from TYPE, the tested epoch is the last one, the
# baseline SSRL does not exist, and an empty root is this project's default folder.
WITHOUT_MEANING = (
    "SOLVER.TRAINER",
    "TEST.WEIGHT",
    "SSRL.KD_WEIGHT",
    "SSRL.SR_WEIGHT",
    "SSRL.FEAT_WEIGHT",
    "DATASETS.ROOT_DIR",
)
SWITCHES = {"on": True, "off": False}


def is_stage_2(settings):
    return "SOLVER.UNIMPORTANT_LR_TIMES" in settings


def meaning(settings):
    """Key → value of this project for the settings of one published file, defaults of its codebase included."""
    values = (ACD_DEFAULTS if is_stage_2(settings) else D3STILL_DEFAULTS) | settings
    values = {key: SWITCHES.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
    expected = {key: value for key, value in values.items() if key not in WITHOUT_MEANING}
    expected["EXPERIMENT.PRECISION"] = "auto" if expected.pop("EXPERIMENT.CUDA_AMP") else "float32"
    expected["RAML.LAMBDA2"] = expected["RAML.LAMBDA1"]  # METHOD: the published runs used λ1 for both
    if is_stage_2(settings):
        expected |= {key: values[old] for key, old in STAGE_2.items()}
        expected |= {"DISTILLER.TYPE": "ACD", "SOLVER.OPTIMIZER_BUILDER": "RAHO"}
    return {key: value for key, value in expected.items() if key not in STAGE_2.values() or key == "DISTILLER.TYPE"}


def nested(settings):
    tree = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
