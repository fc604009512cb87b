"""Losses stay finite and in float32 where half precision, degenerate batches or odd settings would break them."""

import pytest
import torch

from d3still.distillers.aml import aml_loss
from d3still.distillers.bct import bct_loss
from d3still.distillers.cc import cc_loss
from d3still.distillers.csd import csd_loss
from d3still.distillers.d3 import d3_loss
from d3still.distillers.fitnet import fitnet_loss
from d3still.distillers.kd import kd_loss
from d3still.distillers.pkt import pkt_loss
from d3still.distillers.raml import raml_loss
from d3still.distillers.rkd import rkd_loss
from d3still.distillers.rop import rop_loss
from d3still.distillers.ssp import ssp_loss
from d3still.distillers.ugd import ugd_global_loss
from d3still.errors import UserError
from d3still.losses import full_precision, triplet_loss
from d3still.modeling import ModelOutput

ANCHORS = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(2))

LOSSES = {
    "fitnet": fitnet_loss,
    "cc": cc_loss,
    "csd": lambda q, g: csd_loss(q, g, 4, 1.0, 0.01),
    "raml": lambda q, g: raml_loss(q, g, 0.7, 0.7),
    "rop_stage1": lambda q, g: rop_loss(q, g, 4, 0.1, 0.2),
    "rop_stage2": lambda q, g: rop_loss(q, g, 4, 0.1, 0.2, gallery_temperature=0.1),
    "d3": lambda q, g: d3_loss(q, g, 4, 50.0, 2.0, 1.0),
    "pkt": pkt_loss,
    "rkd": lambda q, g: rkd_loss(q, g, 25, 50),
    "kd": lambda q, g: kd_loss(q, g, 2.0),
    "ugd_global": ugd_global_loss,
    "bct": lambda q, g: bct_loss(q, g, torch.tensor([0, 1, 2, 3, 4, 5])),
    "aml": lambda q, g: aml_loss(q, g, torch.tensor([0, 0, 1, 1, 2, 2]), 0.1),
    "ssp": lambda q, g: ssp_loss(q, g, ANCHORS),
    "triplet": lambda q, g: triplet_loss(q, torch.tensor([0, 0, 1, 1, 2, 2])),
}


def features(seed, dtype=torch.float32):
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(name, dtype):
    query, gallery = features(0, dtype), features(1, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](query, gallery)
    assert loss.dtype == torch.float32
    expected = LOSSES[name](query.detach().float(), gallery.detach().float())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6), "the same value as without autocast"


@pytest.mark.parametrize("how", ["by position", "by keyword", "in a tuple", "in a mapping"])
def test_full_precision_holds_however_the_tensors_are_given(how):
    half = torch.full((2,), 1.25, dtype=torch.bfloat16)
    seen = []

    @full_precision
    def loss(first=None, second=None):
        tensor = {"in a tuple": lambda: first[0].logits, "in a mapping": lambda: second["x"][0]}.get(
            how, lambda: second if first is None else first
        )()
        seen.append((tensor.dtype, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")))
        return tensor.sum()

    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # as within autocast on a GPU
    try:
        with torch.autocast("cpu", torch.bfloat16):
            if how == "by position":
                loss(half)
            elif how == "by keyword":
                loss(second=half)
            elif how == "in a tuple":
                loss((ModelOutput(half, half, half, (half,) * 4),))
            else:
                loss(second={"x": [half]})
        assert torch.is_autocast_enabled("cuda"), "and puts it back"
    finally:
        torch.set_autocast_enabled("cuda", before)
    assert seen == [(torch.float32, False, False)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("identical", ["two rows", "all rows", "both networks"])
def test_identical_rows_give_finite_gradients(name, identical):
    query, gallery = features(0).detach(), features(1).detach()
    if identical == "two rows":
        query[1], gallery[3] = query[0], gallery[2]
    elif identical == "all rows":
        query[:], gallery[:] = query[0].clone(), gallery[0].clone()
    else:
        gallery = query.clone()
    query.requires_grad_(), gallery.requires_grad_()
    loss = LOSSES[name](query, gallery)
    gradients = torch.autograd.grad(loss, [query, gallery], allow_unused=True)
    assert torch.isfinite(loss)
    for gradient in gradients:
        assert gradient is None or (torch.isfinite(gradient).all() and gradient.abs().max() < 1e6)


@pytest.mark.parametrize("method", ["batch_hard", "batch_soft", "batch_sample"])
def test_a_batch_of_one_identity_has_triplet_loss_zero(method):
    feats = features(0)
    loss = triplet_loss(feats, torch.zeros(6, dtype=torch.long), method=method)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, feats)[0], torch.zeros(6, 16))


def test_batch_sample_lies_between_hard_and_easy():
    # every anchor's sampled triplet is at most as hard as the hardest one, and the margin bounds it below by 0
    torch.manual_seed(0)
    feats, labels = features(3), torch.tensor([0, 0, 1, 1, 2, 2])
    hard = triplet_loss(feats, labels, 0.3, "batch_hard").item()
    sampled = [triplet_loss(feats, labels, 0.3, "batch_sample").item() for _ in range(20)]
    assert max(sampled) <= hard + 1e-6
    assert len(set(sampled)) > 1, "it draws"


@pytest.mark.parametrize(
    ("loss", "setting"),
    [
        (lambda q, g: rop_loss(q, g, 7, 0.1, 0.2), "ROP.TOPK"),
        (lambda q, g: csd_loss(q, g, 7, 1.0, 0.01), "CSD.TOPK"),
        (lambda q, g: d3_loss(q, g, 7, 1.0, 1.0, 1.0), "D3.TOPK"),
        (lambda q, g: d3_loss(q, g, 1, 1.0, 1.0, 1.0), "D3.TOPK"),
    ],
)
def test_topk_that_does_not_fit_names_its_setting(loss, setting):
    with pytest.raises(UserError, match=setting):
        loss(features(0), features(1))


@pytest.mark.parametrize("name", ["cc", "raml", "rkd"])
def test_one_image_is_refused_where_a_relation_needs_two(name):
    with pytest.raises(UserError, match="IMS_DISTILLATION_PER_BATCH"):
        LOSSES[name](features(0)[:1], features(1)[:1])


def test_rop_equals_the_plain_broadcast_over_several_chunks(monkeypatch):
    # independent implementation: the formula of METHOD written out, differentiated by autograd
    monkeypatch.setattr("d3still.distillers.rop.CHUNK_ELEMENTS", 2 * 5 * 5)
    query, gallery = features(0, torch.float64), features(1, torch.float64)
    unit_q, unit_g = (x / x.norm(dim=1, keepdim=True) for x in (query, gallery))
    s, neighbours = (unit_g @ unit_g.T).topk(5)
    q = (unit_q @ unit_g.T).gather(1, neighbours)
    order_g = torch.sigmoid((s[:, None, :] - s[:, :, None]) / 0.1)
    order_q = torch.sigmoid((q[:, None, :] - s[:, :, None]) / 0.05)
    weights = torch.softmax(0.2 * s, 1) * torch.arange(1, 6)
    expected = (weights[:, :, None] * (order_g - order_q) ** 2).sum((1, 2)).mean() / 5
    loss = rop_loss(query, gallery, 5, 0.05, 0.2, gallery_temperature=0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for actual, wanted in zip(
        torch.autograd.grad(loss, [query, gallery]), torch.autograd.grad(expected, [query, gallery]), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-14)
