"""Every baseline and every +ACD variant trains an epoch on the emoji set from its own config."""

import json

import pytest

from d3still.config import load_config
from d3still.engine import train
from tests.tiny import REPOSITORY

BASELINES = ("fitnet", "cc", "csd", "raml", "rop", "d3", "ugd", "vanillakd", "pkt", "rkd", "bct", "aml", "ssp")


def one_epoch(stage, root):
    settings = ["OUTPUT_DIR.ROOT_PATH", str(root), "SOLVER.MAX_EPOCHS", 1, "SOLVER.LR_WARMUP_EPOCHS", 0]
    settings += ["SOLVER.LR_DECAY_STEPS", [0], "RAHO.MAX_BATCHES", 4]
    folder = train(load_config(REPOSITORY / f"configs/emoji/{stage}.yaml", settings))
    return json.loads((folder / "metrics.json").read_text()), json.loads((folder / "metrics.jsonl").read_text())


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    one_epoch("vanilla", root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("baseline", BASELINES)
def test_one_epoch_with_and_without_acd(gallery, baseline):
    for stage, terms in ((baseline, {"kd"}), (f"acd_{baseline}", {"kd", "logits"})):
        metrics, epoch = one_epoch(stage, gallery)
        assert epoch.keys() & {"kd", "logits"} == terms
        assert 0 < metrics["AIR"]["mAP"] < 100 and 0 < metrics["SIR"]["mAP"] < 100
        assert metrics["valid_queries"] == 756, "every test query has another vendor's drawing in the gallery"
    assert (metrics["extra_parameters"] > 0) == (baseline == "ugd")
