"""The learning rate of every parameter of the gallery network is the one of METHOD's table."""

import pytest
import torch

from d3still.config import get_cfg
from d3still.distillers import DISTILLERS, Pair
from d3still.errors import UserError
from d3still.modeling import build_model
from d3still.solver import build_optimizer

REPORT = {
    "groups": {
        "unimportant_at_both": ["layer2.1", "layer3.0"],
        "unimportant_at_high_resolution_only": ["layer4.1"],
        "important": ["layer1.1", "layer2.0", "layer3.1", "layer4.0"],
    },
    "scores": {},
}


def config(*settings):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["DISTILLER.TYPE", "ACD", "ACD.BASELINE", "FitNet", "SOLVER.OPTIMIZER_BUILDER", "RAHO", *settings]
    )
    return cfg


def acd(cfg, gallery="ResNet18"):
    return DISTILLERS.get("ACD").build(cfg, build_model("ResNet18", 5), build_model(gallery, 5))


def rates(optimizer):
    return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}


def expected_rate(name, lr=0.01, gamma=0.05):
    """METHOD, RAHO: unimportant in both lr; at high resolution only γ·lr; everything else γ²·lr."""
    block = ".".join(name.split(".")[:2])
    if block in ("layer2.1", "layer3.0"):
        return lr
    return gamma * lr if block == "layer4.1" else gamma**2 * lr


def test_every_parameter_has_the_rate_of_its_tier():
    cfg = config()
    distiller = acd(cfg)
    found = rates(build_optimizer(cfg, distiller, None, REPORT).optimizer)
    assert set(found) == {name for name, _ in distiller.gallery.named_parameters()}, "all of them, and no other"
    for name, rate in found.items():
        assert rate == pytest.approx(expected_rate(name), rel=1e-12), name


def test_the_optimizer_holds_no_parameter_of_the_query_network():
    cfg = config()
    distiller = acd(cfg)
    optimizer = build_optimizer(cfg, distiller, None, REPORT).optimizer
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in distiller.gallery.parameters()}


def test_weight_decay_is_not_scaled_and_other_factors_multiply_on_top():
    cfg = config("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.FC_LR_TIMES", 3.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0)
    optimizer = build_optimizer(cfg, acd(cfg), None, REPORT).optimizer
    for group in optimizer.param_groups:
        for name in group["names"]:
            factor = (2.0 if name.endswith("bias") else 1.0) * (3.0 if name.startswith("fc.") else 1.0)
            assert group["lr"] == pytest.approx(expected_rate(name) * factor)
            assert group["weight_decay"] == (0.0 if name.endswith("bias") else 5e-4)


@pytest.mark.parametrize("gallery", ["ResNet18", "ResNet50_ibn_a", "MobileNetV3_Small"])
def test_blocks_are_measured_on_at_most_max_batches(gallery):
    cfg = config("RAHO.MAX_BATCHES", 2)
    distiller = acd(cfg, gallery)
    given = []

    def pairs():
        for seed in range(5):
            torch.manual_seed(seed)
            given.append(seed)
            yield Pair(torch.randn(6, 3, 32, 32), torch.randn(6, 3, 64, 64), torch.arange(6) % 5)

    distiller.train()
    report = build_optimizer(cfg, distiller, pairs).report
    assert len(given) == 2
    names = [block.name for block in distiller.gallery.blocks()]
    grouped = [name for tier in report["groups"].values() for name in tier]
    assert sorted(grouped) == sorted(names), "every block is in one tier"
    assert names[0] in report["groups"]["important"], "block 0 is not scored"
    unimportant = report["groups"]["unimportant_at_both"] + report["groups"]["unimportant_at_high_resolution_only"]
    assert len(unimportant) == int(0.3 * (len(names) - 1))
    assert distiller.gallery.training and not distiller.query.training, "modes are put back"
    assert not any(block.module._forward_hooks for block in distiller.gallery.blocks()), "hooks are removed"


def test_raho_outside_stage_2_is_refused():
    cfg = config()
    stage1 = DISTILLERS.get("FitNet").build(cfg, build_model("ResNet18", 5), build_model("ResNet18", 5))
    with pytest.raises(UserError, match="belongs to stage 2"):
        build_optimizer(cfg, stage1, None, REPORT)
