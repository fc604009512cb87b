"""Values of the right type that cannot work."""

import logging

import pytest

from d3still.config import get_cfg, load_config
from d3still.config.validate import CHOICES, RULES
from d3still.errors import UserError


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("DISTILLER:\n  TYPE: ROP\n")
    return lambda *overrides: load_config("x.yaml", overrides)


@pytest.mark.parametrize(
    "key, value",
    [
        *((key, "nonsense") for key in CHOICES),
        ("EXPERIMENT.DEVICE_ID", "0,1"),
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
    ],
)
def test_it_is_refused_with_its_key(load, key, value):
    with pytest.raises(UserError) as caught:
        load(key, value)
    message = str(caught.value)
    assert message.startswith(f"command line: {key} is ") and "\n" not in message


def test_the_place_is_that_of_the_value(load, tmp_path):
    (tmp_path / "base.yaml").write_text("ACD:\n  ALPHA: -3\n")
    (tmp_path / "x.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(UserError, match=r"^base.yaml, line 2: ACD.ALPHA is -3.0; it must be 0 or more$"):
        load()


def test_the_defaults_and_every_rule_fit_the_schema(load):
    known = get_cfg().flat()
    assert known.keys() >= CHOICES.keys() | RULES.keys()
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
    load("DATALOADER.SAMPLER", "softmax", "SOLVER.IMS_PER_BATCH", 7)


def test_a_batch_of_two_identities_is_enough(load):
    load("SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_INSTANCE", 2)


def test_a_run_that_ends_before_its_rate_falls_is_told_so(load, caplog):
    with caplog.at_level(logging.WARNING):
        load("SOLVER.MAX_EPOCHS", 40)
        assert "SOLVER.MAX_EPOCHS 40 ends before the learning rate falls" in caplog.text
        caplog.clear()
        load("SOLVER.MAX_EPOCHS", 41)
        assert not caplog.text
        load("SOLVER.MAX_EPOCHS", 10)
        assert "SOLVER.MAX_EPOCHS 10 ends before warm-up does" in caplog.text
