"""What every distiller shares: who learns, who is frozen bit for bit, and what the loss is made of."""

import copy

import pytest
import torch
import torch.nn.functional as F

from d3still.config import get_cfg
from d3still.distillers import DISTILLERS, Pair, SupervisedLoss
from d3still.distillers.acd import collaborative_logits, collaborative_logits_loss
from d3still.distillers.rop import rop_loss
from d3still.errors import UserError
from d3still.losses import triplet_loss
from d3still.modeling import build_model

BASELINES = [name for name in DISTILLERS if name not in ("NONE", "ACD")]
CLASSES, BATCH = 6, 12
SMALL = ["ROP.TOPK", 8, "CSD.TOPK", 8, "D3.TOPK", 4, "SSP.CENTROIDS", 3, "INPUT.STUDENT_SIZE_TRAIN", [32, 32]]


def config(*settings):
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *settings])
    return cfg


def build(kind, *settings, query="ResNet18", gallery="ResNet18", baseline="ROP"):
    torch.manual_seed(0)
    cfg = config("DISTILLER.TYPE", kind, "ACD.BASELINE", baseline, *settings)
    networks = (None if kind == "NONE" else build_model(query, CLASSES)), build_model(gallery, CLASSES)
    learner = "query" if kind not in ("NONE", "ACD") else "gallery"
    distiller = DISTILLERS.get(kind).build(cfg, *networks, learner=learner)
    distiller.prepare(lambda: [batch()[2]])
    return distiller


def batch(low=(32, 32), high=(64, 64), dtype=torch.float32, on_high=False):
    torch.manual_seed(1)
    labels = torch.arange(BATCH) % CLASSES
    pair = Pair(torch.randn(BATCH, 3, *low, dtype=dtype), torch.randn(BATCH, 3, *high, dtype=dtype), labels.flip(0))
    return torch.randn(BATCH, 3, *(high if on_high else low), dtype=dtype), labels, pair


def steps(distiller, count, **shape):
    optimizer = torch.optim.SGD([p for _, p in distiller.learnable_parameters()], lr=0.01, momentum=0.9)
    for _ in range(count):
        images, labels, pair = batch(on_high=distiller.learner == "gallery", **shape)
        losses, _ = distiller(images, labels, pair if distiller.uses_pairs else None)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return losses


def changed(before, network):
    return [key for key, value in network.state_dict().items() if not torch.equal(before[key], value)]


@pytest.mark.parametrize("kind", ["ROP", "UGD", "ACD"])
def test_the_frozen_network_is_bit_identical_after_training(kind):
    # PITFALLS: weights and batch-norm buffers, also after train() on the whole
    distiller = build(kind, baseline="UGD" if kind == "ACD" else "ROP")
    frozen, learner = (
        copy.deepcopy(distiller.frozen_network.state_dict()),
        copy.deepcopy(distiller.learner_network.state_dict()),
    )
    extra = copy.deepcopy(distiller.extra.state_dict())
    probe = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        output = distiller.frozen_network(probe).retrieval_feat
    for _ in range(2):
        distiller.train()
        steps(distiller, 2)
    assert changed(frozen, distiller.frozen_network) == []
    with torch.no_grad():
        assert torch.equal(distiller.frozen_network(probe).retrieval_feat, output)
    moved = changed(learner, distiller.learner_network)
    assert "fc.add_block.2.weight" in moved and "bn1.running_mean" in moved, "the learner did learn"
    assert bool(changed(extra, distiller.extra)) == (kind == "UGD"), "projectors learn in stage 1 and only there"


def test_stage_0_trains_its_one_network():
    distiller = build("NONE")
    distiller.train()
    before = copy.deepcopy(distiller.gallery.state_dict())
    losses = steps(distiller, 1)
    assert set(losses) == {"ce", "triplet"}
    assert distiller.frozen_network is None and changed(before, distiller.gallery)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("stage", [1, 2])
def test_every_baseline_steps_in_both_roles(baseline, stage):
    distiller = build(baseline) if stage == 1 else build("ACD", baseline=baseline)
    distiller.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = steps(distiller, 1)
    names = {"ce", "triplet", "kd"} if stage == 1 else {"ce", "triplet", "kd", "logits"}
    assert set(losses) == names
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is None for p in distiller.frozen_network.parameters())
    assert all(torch.isfinite(p.grad).all() for _, p in distiller.learnable_parameters())


def test_stage_1_loss_is_the_formula_of_the_method():
    distiller = build("ROP", "ROP.KD_WEIGHT", 5.0).double()
    distiller.train()
    images, labels, pair = batch(dtype=torch.float64)
    reference = copy.deepcopy(distiller)
    losses, _ = distiller(images, labels, pair)
    x = reference.query(images)
    low, high = reference.query(pair.low), reference.gallery(pair.high)
    expected = {
        "ce": F.cross_entropy(x.logits, labels, label_smoothing=0.1),
        "triplet": triplet_loss(x.pooled_feat, labels, 0.3),
        "kd": 5.0 * rop_loss(low.retrieval_feat, high.retrieval_feat, 8, 0.1, 0.2, 1e-6),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-9, atol=0)


def test_stage_2_loss_is_the_formula_of_the_method():
    distiller = build("ACD", "ROP.KD_WEIGHT", 5.0).double()
    distiller.train()
    images, labels, pair = batch(dtype=torch.float64, on_high=True)
    reference = copy.deepcopy(distiller)
    losses, _ = distiller(images, labels, pair)
    x = reference.gallery(images)
    low, high = reference.query(pair.low), reference.gallery(pair.high)
    together = collaborative_logits(reference.gallery.fc.classifier.weight, low.retrieval_feat, high.retrieval_feat)
    expected = {
        "ce": F.cross_entropy(x.logits, labels, label_smoothing=0.1),
        "triplet": triplet_loss(x.pooled_feat, labels, 0.3),
        # the gallery's order is soft, at the same temperature, when the gallery network learns
        "kd": 5.0 * rop_loss(low.retrieval_feat, high.retrieval_feat, 8, 0.1, 0.2, 0.1),
        "logits": collaborative_logits_loss(low.logits, high.logits, together, 3.0, 2.0, 2.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-9, atol=0)
    sum(losses.values()).backward(), sum(expected.values()).backward()
    for (name, mine), theirs in zip(distiller.gallery.named_parameters(), reference.gallery.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("query", ["ResNet34", "ResNet50_ibn_a", "MobileNetV3_Small"])
@pytest.mark.parametrize("layer", [1, 4])
@pytest.mark.parametrize("size", [(32, 32), (80, 40)])
def test_ugd_works_for_every_query_backbone_stage_and_shape(query, layer, size):
    settings = ["UGD.DISTILLATION_LAYER", layer, "INPUT.STUDENT_SIZE_TRAIN", list(size)]
    distiller = build("UGD", *settings, query=query)
    distiller.train()
    losses = steps(distiller, 1, low=size, high=(2 * size[0], 2 * size[1]))
    assert torch.isfinite(losses["kd"])
    channels = distiller.query.stage_channels[layer - 1]
    # METHOD: BatchNorm1d(C), Linear(C→512) without bias, BatchNorm1d(512), once a grid
    assert distiller.extra_parameter_count() == 2 * (2 * channels + 512 * channels + 2 * 512)
    assert distiller.grids == (size[0] // 16, size[0] // 32)
    trained = [name for name, _ in distiller.learnable_parameters() if name.startswith("extra.")]
    assert len(trained) == 2 * 5


def test_ugd_stage_out_of_range_is_named():
    with pytest.raises(UserError, match=r"UGD.DISTILLATION_LAYER is 5"):
        build("UGD", "UGD.DISTILLATION_LAYER", 5)


@pytest.mark.parametrize("baseline", ["NONE", "ACD", "Rop"])
def test_acd_over_something_that_is_no_baseline(baseline):
    with pytest.raises(UserError, match=rf"ACD.BASELINE '{baseline}' is not a known baseline"):
        build("ACD", baseline=baseline)


def test_an_argument_that_the_loss_does_not_take_is_refused():
    networks = {"query": build_model("ResNet18", CLASSES), "gallery": build_model("ResNet18", CLASSES)}
    with pytest.raises(TypeError, match="kd_wieght"):
        DISTILLERS.get("CC")(**networks, supervised=SupervisedLoss(), normalize=True, kd_wieght=2.0)


@pytest.mark.parametrize(
    ("baseline", "given", "lacking"),
    [("D3", {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}, "topk"), ("VanillaKD", {}, "temperature")],
)
def test_an_argument_that_the_loss_needs_is_asked_for_at_once(baseline, given, lacking):
    networks = {"query": build_model("ResNet18", CLASSES), "gallery": build_model("ResNet18", CLASSES)}
    with pytest.raises(TypeError, match=lacking):
        DISTILLERS.get(baseline)(**networks, supervised=SupervisedLoss(), **given)


def test_weights_of_zero_leave_only_the_supervised_losses():
    # the control "finetune": RAHO's rates, no distillation
    distiller = build("ACD", "ROP.KD_WEIGHT", 0.0, "ACD.ALPHA", 0.0, "ACD.BETA", 0.0)
    distiller.train()
    assert set(steps(distiller, 1)) == {"ce", "triplet"}
