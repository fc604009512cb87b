"""The losses that no published codebase of D3Still's has: naive loops in float64, and numbers worked out by hand."""

import math

import pytest
import torch

from d3still.distillers.aml import aml_loss
from d3still.distillers.bct import bct_loss
from d3still.distillers.ssp import product_quantiser, ssp_loss
from d3still.runs.checkpoint import load_network_state, network_state
from tests.distillers.test_flow import batch, build


def numbers(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(one, other):
    norms = [math.sqrt(sum(x * x for x in vector)) for vector in (one, other)]
    return sum(x * y for x, y in zip(one, other, strict=True)) / norms[0] / norms[1]


def log_softmax(values):
    total = math.log(sum(math.exp(value) for value in values))
    return [value - total for value in values]


def naive_bct(feat, classifier, labels, smoothing):
    total = 0.0
    for image, label in zip(feat, labels, strict=True):
        log_p = log_softmax([sum(w * f for w, f in zip(row, image, strict=True)) for row in classifier])
        total -= (1 - smoothing) * log_p[label] + smoothing * sum(log_p) / len(log_p)
    return total / len(feat)


def naive_aml(query, gallery, labels, margin, regression, contrastive):
    total = 0.0
    for i, anchor in enumerate(query):
        s = [cosine(anchor, image) for image in gallery]
        positive = [1 - s[j] for j in range(len(s)) if j != i and labels[j] == labels[i]]
        negative = [max(0.0, s[j] - margin) for j in range(len(s)) if labels[j] != labels[i]]
        means = [sum(values) / len(values) for values in (positive, negative) if values]
        total += regression * (1 - s[i]) + contrastive * sum(means)
    return total / len(query)


def naive_ssp(query, gallery, anchors, scale):
    total, width = 0.0, len(anchors[0][0])
    for one, other in zip(query, gallery, strict=True):
        for m, part in enumerate(anchors):
            cut = slice(m * width, (m + 1) * width)
            log_q, log_g = (log_softmax([scale * cosine(side[cut], a) for a in part]) for side in (one, other))
            total += sum(math.exp(g) * (g - q) for g, q in zip(log_g, log_q, strict=True))
    return total / len(query) / len(anchors)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bct_is_the_naive_loop(smoothing):
    feat, classifier, labels = numbers(0, 5, 6), numbers(1, 4, 6), torch.tensor([0, 3, 1, 1, 2])
    expected = naive_bct(feat.tolist(), classifier.tolist(), labels.tolist(), smoothing)
    assert bct_loss(feat, classifier, labels, smoothing).item() == pytest.approx(expected, rel=1e-12)


def test_bct_by_hand():
    # Logits (2, 0): log(1 + e⁻²) = 0.126928 for class 0; smoothed by 0.1, a twentieth of the target moves to the
    # other class, whose logit is 2 lower: + 0.1.
    feat, classifier, label = torch.tensor([[2.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0])
    assert bct_loss(feat, classifier, label, 0.0).item() == pytest.approx(0.126928, abs=1e-6)
    assert bct_loss(feat, classifier, label).item() == pytest.approx(0.226928, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0] * 6])
def test_aml_is_the_naive_loop(labels):
    query, gallery = numbers(0, 6, 5), numbers(1, 6, 5)
    for settings in ((0.7, 1.0, 1.0), (-0.2, 0.5, 2.0)):
        expected = naive_aml(query.tolist(), gallery.tolist(), labels, *settings)
        assert aml_loss(query, gallery, torch.tensor(labels), *settings).item() == pytest.approx(expected, rel=1e-12)


def test_aml_by_hand():
    # Query and gallery features (1, 0), (1, 0), (0, 1) of identities 0, 1, 0. Regression: 0. Anchor 0: the positive
    # is orthogonal, 1; of one negative, cosine 1, 0.3. Anchor 1: negatives 0.3 and 0, mean 0.15. Anchor 2: 1 and 0.
    feats = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = aml_loss(feats, feats, torch.tensor([0, 1, 0]))
    assert loss.item() == pytest.approx((1.3 + 0.15 + 1.0) / 3, abs=1e-6)
    assert aml_loss(feats, -feats, torch.tensor([0, 1, 0]), contrastive_weight=0.0).item() == pytest.approx(2.0)


def test_ssp_is_the_naive_loop():
    query, gallery, anchors = numbers(0, 5, 12), numbers(1, 5, 12), numbers(2, 3, 4, 4)
    expected = naive_ssp(query.tolist(), gallery.tolist(), anchors.tolist(), 10.0)
    assert ssp_loss(query, gallery, anchors).item() == pytest.approx(expected, rel=1e-12)


def test_ssp_by_hand():
    # One part, anchors (1, 0) and (0, 1), scale 1. A feature on the first has p = (e, 1) / (e + 1), one on the
    # diagonal (½, ½): KL = log(½) − ½·(log p₁ + log p₂), of lengths nothing.
    anchors = torch.eye(2)[None]
    p = math.e / (math.e + 1)
    expected = -math.log(2) - 0.5 * (math.log(p) + math.log(1 - p))
    assert ssp_loss(torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 2.0]]), anchors, 1.0).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (lambda q, g: aml_loss(q, g, torch.tensor([0, 1, 0, 1]), 0.0), 2),
        (lambda q, g: ssp_loss(q, g, numbers(9, 2, 3, 3)), 2),
    ],
    ids=["aml", "ssp"],
)
def test_gradients_are_those_of_finite_differences(loss, shapes):
    feats = [numbers(seed, 4, 6).requires_grad_() for seed in range(shapes)]
    assert torch.autograd.gradcheck(loss, feats)


def test_a_product_quantiser_finds_the_clusters_of_each_part():
    # Part 1 holds two directions, part 2 two others, independently: the centroids are these, of length 1/√2 each.
    axis = torch.eye(2)
    feats = torch.cat([torch.cat([axis[a], axis[b]])[None] for a in (0, 1) for b in (0, 1) for _ in range(5)])
    feats += 0.01 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = product_quantiser(3 * feats, parts=2, centroids=2)
    assert found.shape == (2, 2, 2)
    for part in found:
        torch.testing.assert_close(part[part[:, 0].argsort(descending=True)], axis * 0.5**0.5, rtol=0, atol=0.02)


@pytest.mark.parametrize("stage", [1, 2])
def test_ssps_anchors_are_the_frozen_networks_and_kept_bit_for_bit(stage, caplog):
    kind = "SSP" if stage == 1 else "ACD"
    with caplog.at_level("INFO"):
        distiller = build(kind, "SSP.CENTROIDS", 256, baseline="SSP")
    assert "32 parts of 3 anchors each from 12 images, a quarter of the images instead of 256" in caplog.text
    view = batch()[2].high if stage == 1 else batch()[2].low
    with torch.no_grad():
        feats = distiller.frozen_network.eval()(view).retrieval_feat
    assert torch.equal(distiller.prepared["anchors"], product_quantiser(feats, 32, 3))
    other = build(kind, "SSP.KD_WEIGHT", 0.0, baseline="SSP")
    assert not other.baseline.prepared
    load_network_state(other, network_state(distiller))
    assert torch.equal(other.baseline.prepared["anchors"], distiller.prepared["anchors"])
