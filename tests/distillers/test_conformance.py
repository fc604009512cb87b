"""Every loss equals the published implementations' value and gradient (tests/conformance/losses.*)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d3still.distillers.acd import collaborative_logits, collaborative_logits_loss
from d3still.distillers.base import SupervisedLoss
from d3still.distillers.cc import cc_loss
from d3still.distillers.csd import csd_loss
from d3still.distillers.d3 import d3_loss
from d3still.distillers.fitnet import fitnet_loss
from d3still.distillers.kd import kd_loss
from d3still.distillers.pkt import pkt_loss
from d3still.distillers.raml import raml_loss
from d3still.distillers.rkd import rkd_loss
from d3still.distillers.rop import rop_loss
from d3still.distillers.ugd import ugd_global_loss, ugd_local_loss
from d3still.losses import triplet_loss
from d3still.modeling import ModelOutput
from tests import conformance

VALUES, ARRAYS = conformance.load("losses")


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def leaf(name):
    return tensor(name).clone().requires_grad_()


def close(actual, expected, relative=1e-9):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=relative, atol=relative * np.abs(expected).max())


def check(entry, loss, **leaves):
    """Compare the value, and the gradient of every leaf for which the reference holds one."""
    close(loss.detach(), VALUES[entry]["value"])
    names = [side for side in leaves if f"{entry}__d_{side}" in ARRAYS]
    assert names, f"no reference gradient for {entry}"
    for side, gradient in zip(
        names, torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True), strict=True
    ):
        reference = ARRAYS[f"{entry}__d_{side}"]
        close(torch.zeros_like(leaves[side]) if gradient is None else gradient, reference)


FEATURE_LOSSES = {
    "fitnet": lambda q, g: fitnet_loss(q, g),
    "cc_normalize": lambda q, g: cc_loss(q, g),
    "cc_raw": lambda q, g: cc_loss(q, g, normalize=False),
    "csd": lambda q, g: csd_loss(q, g, topk=10, query_temperature=1.0, gallery_temperature=0.01),
    "csd_full": lambda q, g: csd_loss(q, g, topk=24, query_temperature=1.0, gallery_temperature=0.01),
    "raml": lambda q, g: raml_loss(q, g, lambda1=0.7482, lambda2=0.6778),
    "raml_released": lambda q, g: raml_loss(q, g, lambda1=0.7482, lambda2=0.7482),
    "rop_baseline": lambda q, g: rop_loss(q, g, topk=16, temperature=0.1, rank_weight=0.2),
    "rop_acd": lambda q, g: rop_loss(q, g, topk=16, temperature=0.1, rank_weight=0.2, gallery_temperature=0.1),
    "d3still": lambda q, g: d3_loss(q, g, topk=10, alpha=100.0, beta=5.0, gamma=1.0),
    "pkt": lambda q, g: pkt_loss(q, g),
    "rkd": lambda q, g: rkd_loss(q, g, distance_weight=25, angle_weight=50),
}


@pytest.mark.parametrize("entry", FEATURE_LOSSES)
def test_feature_losses(entry):
    query, gallery = leaf("query_feat"), leaf("gallery_feat")
    check(entry, FEATURE_LOSSES[entry](query, gallery), query=query, gallery=gallery)


@pytest.mark.parametrize(
    ("entry", "alpha", "beta", "temperature"),
    [
        ("acd_logits_a3_b2_tau2", 3.0, 2.0, 2.0),
        ("acd_logits_a1_b0_tau2", 1.0, 0.0, 2.0),
        ("acd_logits_a0_b1_tau2", 0.0, 1.0, 2.0),
        ("acd_logits_a3_b2_tau4", 3.0, 2.0, 4.0),
    ],
)
def test_collaborative_logits(entry, alpha, beta, temperature):
    query, gallery, classifier = leaf("query_feat"), leaf("gallery_feat"), leaf("gallery_classifier")
    query_logits = query @ tensor("query_classifier").T
    together = collaborative_logits(classifier, query.detach(), gallery)
    loss = collaborative_logits_loss(query_logits, gallery @ classifier.T, together, alpha, beta, temperature)
    check(entry, loss, gallery=gallery, gallery_classifier=classifier)
    assert torch.autograd.grad(loss, query, allow_unused=True)[0] is None, "the query side must get no gradient"


def test_vanilla_kd():
    query_logits = tensor("query_feat") @ tensor("query_classifier").T
    gallery_logits = tensor("gallery_feat") @ tensor("gallery_classifier").T
    loss = kd_loss(query_logits, gallery_logits, temperature=2.0)
    close(loss, VALUES["vanilla_kd"]["value"])


def test_kl_is_summed_over_classes():
    # PITFALLS, "Sampling and losses": averaged over classes by mistake it would be a third of this
    logits, target = torch.tensor([[1.0, 0, 0], [0, 2, 0]]), torch.tensor([[2.0, 0, 0], [0, 1, 0]])
    assert kd_loss(logits, target, 4.0).item() == pytest.approx(0.121743, abs=1e-6)


@pytest.mark.parametrize("role", ["ugd_baseline", "ugd_acd"])
def test_ugd(role):
    query, gallery = leaf("query_feat"), leaf("gallery_feat")
    query_map, gallery_map = leaf("ugd_query_map"), leaf("ugd_gallery_map")
    embed, classifier = tensor("ugd_gallery_embed"), tensor("gallery_classifier")
    projectors = [tensor(name) for name in sorted(ARRAYS) if name.startswith("ugd_projector")]
    fixed = role == "ugd_baseline"  # stage 1: the gallery side carries no gradient
    gallery_in, map_in = (gallery.detach(), gallery_map.detach()) if fixed else (gallery, gallery_map)
    loss = 2.0 * ugd_global_loss(query, gallery_in)
    for grid, projector in zip((4, 2), projectors, strict=True):
        loss = loss + 2.0 * ugd_local_loss(
            query_map,
            map_in,
            tensor("ugd_labels"),
            grid,
            lambda cells, p=projector: cells @ p.T,
            lambda cells: cells @ embed.T,
            lambda feats: feats @ classifier.T,
        )
    check(
        role,
        loss,
        query=query,
        gallery=gallery,
        ugd_query_map=query_map,
        ugd_gallery_map=gallery_map,
        query_map=query_map,
        gallery_map=gallery_map,
    )


@pytest.mark.parametrize("method", ["batch_hard", "batch_soft"])
def test_triplet(method):
    feats = leaf("triplet_feat")
    loss = triplet_loss(feats, tensor("labels"), 0.3, method)
    entry = VALUES[f"triplet_{method}"]
    close(loss.detach(), entry["value"], relative=1e-6)
    names = [name for name in ARRAYS if name.startswith(f"triplet_{method}__d_")]
    for name in names:
        close(torch.autograd.grad(loss, feats, retain_graph=True)[0], ARRAYS[name], relative=1e-5)


def test_triplet_on_unequal_counts():
    # PITFALLS: hand-worked over all six anchors, two of which have only themselves as a positive
    feats, labels = torch.tensor([[0.0], [5], [1], [2], [3], [4]]), torch.tensor([0, 1, 2, 2, 2, 2])
    assert triplet_loss(feats, labels, 0.3).item() == pytest.approx(0.8667, abs=1e-4)


def test_label_smoothed_cross_entropy():
    logits = tensor("gallery_feat") @ tensor("gallery_classifier").T
    assert F.cross_entropy(logits, tensor("labels"), label_smoothing=0.1).dtype == torch.float64
    losses = SupervisedLoss()(ModelOutput(logits, tensor("gallery_feat"), tensor("gallery_feat"), ()), tensor("labels"))
    close(losses["ce"], VALUES["ce_label_smooth_0.1"]["value"])
