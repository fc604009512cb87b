"""Values of the right type that cannot work."""

import logging

import pytest

from d3still.config import get_cfg, load_config
from d3still.config.coerce import SWITCHES_WITH_AUTO
from d3still.config.sections import known_rules
from d3still.errors import UserError

DEFAULTS = get_cfg().flat()
TEXTS = [
    key
    for key, rule in known_rules().items()
    if key not in SWITCHES_WITH_AUTO and DEFAULTS[key] in rule.meaning.split(" | ")
]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("DISTILLER:\n  TYPE: ROP\n")
    return lambda *overrides: load_config("x.yaml", overrides)


@pytest.mark.parametrize(
    "key, value",
    [
        *((key, "nonsense") for key in TEXTS),
        ("EXPERIMENT.DEVICE_ID", "0,1"),
        ("EXPERIMENT.DEVICE_ID", "²"),
        ("EXPERIMENT.TRIPLET_MARGIN", -0.1),
        ("ACD.ALPHA", -1),
        ("ACD.TEMPERATURE", 0),
        ("RAHO.RATIO", 1.1),
        ("RAHO.RATIO", 30),
        ("RAHO.GAMMA", -0.1),
        ("DISTILLER.TEACHER_LAST_STRIDE", 3),
        ("CSD.TEMPERATURE_GALLERY", 0),
        ("D3.TOPK", 1),
        ("UGD.DISTILLATION_LAYER", 0),
        ("UGD.DISTILLATION_LAYER", 5),
        ("INPUT.TEACHER_SIZE_TRAIN", [256]),
        ("INPUT.TEACHER_SIZE_TRAIN", [256, 256, 3]),
        ("INPUT.STUDENT_SIZE_TEST", [0, 64]),
        ("INPUT.SIZE_TRAIN", [-1, 64]),
        ("INPUT.STUDENT_PADDING", -1),
        ("INPUT.PADDING", -2),
        ("INPUT.PROB", 1.5),
        ("INPUT.PIXEL_MEAN", [0.5]),
        ("INPUT.PIXEL_STD", [0.2, 0.2, 0.0]),
        ("SOLVER.MAX_EPOCHS", 0),
        ("SOLVER.BASE_LR", 0),
        ("SOLVER.MOMENTUM", 1),
        ("SOLVER.LR_DECAY_STEPS", []),
        ("SOLVER.LR_DECAY_STEPS", [-1]),
        ("SOLVER.IMS_DISTILLATION_PER_BATCH", 0),
        ("SOLVER.SEED", -1),
        ("SOLVER.SEED", 2**32),
        ("UGD.KD_WEIGHT", -1),
        ("DATALOADER.NUM_WORKERS", -1),
        ("TEST.IMS_PER_BATCH", 0),
        ("TEST.RE_RANKING_PARAMETER", [0, 10, 0.3]),
        ("TEST.RE_RANKING_PARAMETER", [60, 10, 1.3]),
        ("SOLVER.IMS_PER_BATCH", 95),
        ("SOLVER.IMS_PER_BATCH", 6),
        ("ROP.TOPK", 257),
        ("OUTPUT_DIR.EXPERIMENT_NAME", "../elsewhere"),
        ("OUTPUT_DIR.EXPERIMENT_NAME", "/tmp/x"),
        ("DATASETS.CAMERA_PATTERN", "(c"),
        ("DATASETS.CAMERA_PATTERN", "c\\d"),
        ("DATASETS.CAMERA_PATTERN", "(a{99999999999})"),
        ("INPUT.STUDENT_SIZE_TRAIN", [1, 1]),
        ("INPUT.TEACHER_SIZE_TEST", [7, 8]),
        ("INPUT.SIZE_TEST", [256, 4097]),
        ("INPUT.SIZE_TRAIN", [10**12, 10**12]),
        ("INPUT.TEACHER_PADDING", 10**9),
        ("SOLVER.BASE_LR", 1e39),
        ("SOLVER.IMS_PER_BATCH", 6 * 10**30),
        ("ACD.TEMPERATURE", 1e308),
        ("ACD.ALPHA", 1e300),
        ("RAML.LAMBDA1", -1e300),
        ("INPUT.PIXEL_MEAN", [0.5, 1e39, 0.5]),
        ("VanillaKD.TEMPERATURE", 1e7),
        ("CSD.TEMPERATURE_QUERY", 1e-7),
    ],
)
def test_it_is_refused_with_its_key(load, key, value):
    with pytest.raises(UserError) as caught:
        load(key, value)
    message = str(caught.value)
    assert message.startswith(f"command line: {key} is ") and "\n" not in message


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.STUDENT_SIZE_TRAIN", [8, 4096]),
        ("SOLVER.BASE_LR", 3.4e38),
        ("ROP.TEMPERATURE", 1e-6),
        ("VanillaKD.TEMPERATURE", 1e6),
        ("DATASETS.CAMERA_PATTERN", "(a{3})"),
    ],
)
def test_the_last_value_that_may_be_is_accepted(load, key, value):
    assert load(key, value).flat()[key] == value


def test_the_place_is_that_of_the_value(load, tmp_path):
    (tmp_path / "base.yaml").write_text("ACD:\n  ALPHA: -3\n")
    (tmp_path / "x.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(UserError, match=r"^base.yaml, line 2: ACD.ALPHA is -3.0; it must be 0 or more$"):
        load()


def test_the_defaults_and_every_rule_fit_the_schema(load):
    known = get_cfg().flat()
    assert known.keys() >= known_rules().keys() and len(TEXTS) == 12
    load()


@pytest.mark.parametrize("baseline", ["ACD", "NONE"])
def test_acd_needs_a_baseline(load, baseline):
    with pytest.raises(UserError, match=r"ACD\.BASELINE is"):
        load("DISTILLER.TYPE", "ACD", "ACD.BASELINE", baseline)


def test_only_the_baseline_in_use_must_fit_the_batch(load):
    load("CSD.TOPK", 999)
    with pytest.raises(UserError, match=r"CSD\.TOPK is 999, more than the pair batch holds"):
        load("DISTILLER.TYPE", "ACD", "ACD.BASELINE", "CSD", "CSD.TOPK", 999)


def test_a_batch_need_not_be_balanced_for_the_plain_sampler(load):
    """7 is no multiple of 6 images an identity, and prime; 1 image has no batch statistics."""
    assert load("DATALOADER.SAMPLER", "softmax", "SOLVER.IMS_PER_BATCH", 7).SOLVER.IMS_PER_BATCH == 7
    with pytest.raises(UserError, match=r"is 7; with DATALOADER\.NUM_INSTANCE 6 .* multiple of 6 .* e\.g\. 12$"):
        load("SOLVER.IMS_PER_BATCH", 7)
    with pytest.raises(UserError, match=r"IMS_DISTILLATION_PER_BATCH is 256; with .* multiple of 6 .* e\.g\. 252$"):
        load("DATALOADER.PAIR_SAMPLER", "identity")
    for key in ("SOLVER.IMS_PER_BATCH", "SOLVER.IMS_DISTILLATION_PER_BATCH"):
        with pytest.raises(UserError, match=f"{key} is 1; it must be 2 or more"):
            load("DATALOADER.SAMPLER", "softmax", "ROP.TOPK", 1, key, 1)


def test_a_batch_of_two_identities_is_enough(load):
    """Two is what the triplet loss needs: 2 identities × 2 images pass, 1 × 4 and 1 × 2 do not."""
    assert load("SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_INSTANCE", 2).SOLVER.IMS_PER_BATCH == 4
    for batch, images in ((4, 4), (2, 2)):
        with pytest.raises(UserError, match=rf"at least two identities, e\.g\. {2 * images}$"):
            load("SOLVER.IMS_PER_BATCH", batch, "DATALOADER.NUM_INSTANCE", images)


def test_a_run_that_ends_before_its_rate_falls_is_told_so(load, caplog):
    with caplog.at_level(logging.WARNING):
        load("SOLVER.MAX_EPOCHS", 40)
        assert "SOLVER.MAX_EPOCHS 40 ends before the learning rate falls" in caplog.text
        caplog.clear()
        load("SOLVER.MAX_EPOCHS", 41)
        assert not caplog.text
        load("SOLVER.MAX_EPOCHS", 10)
        assert "SOLVER.MAX_EPOCHS 10 ends before warm-up does" in caplog.text
