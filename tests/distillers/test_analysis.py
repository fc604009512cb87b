"""RAHO's pass over the pair batches, on networks small enough to work out by hand.

An image is an angle: the mean of its pixels, in degrees. Block i of the gallery network turns it k_i times as far and
gives the point on the unit circle there, so that the cosine of two images that lie δ apart is cos(k_i·δ).

The high-resolution images of a batch lie at 0, 60 and 0 degrees, the low-resolution ones at 0, 90 and 180, of which
the third is classified wrong. D_i is the mean over rows of the distance between two cosine matrices:

- high: with d = |cos(60·k_i) − cos(60·3)| the rows of the three images have norm d, √2·d and d: D_i = d·(2 + √2)/3;
- cross: of two images both rows have norm |cos(90·k_i) − cos(90·2)| = D_i.

    block   k   cos 60k   d high   cos 90k   D cross
    0       4    −0.5      0.5        1        2
    1       1     0.5      1.5        0        1
    2       3    −1        0          0        1
    3       5     0.5      1.5        0        1
    4       2    −0.5      0.5       −1        0
    5       9    −1        0          0        1
    6      10    −0.5      0.5       −1        0

A block's score is D of the block before it less its own.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d3still.config import get_cfg
from d3still.distillers import Pair
from d3still.distillers.acd.analysis import measure_importance
from d3still.modeling import ModelOutput
from d3still.modeling.base import Block
from d3still.solver.raho import analyse

BLOCKS, GALLERY_FINAL, QUERY_FINAL = (4, 1, 3, 5, 2, 9, 10), 3, 2
HIGH = [(2 + math.sqrt(2)) / 3 * score for score in (-1.0, 1.5, -1.5, 1.0, 0.5, -0.5)]
CROSS = [1.0, 0.0, 0.0, 1.0, -1.0, 1.0]


class Turn(nn.Module):
    """(B,) angles in degrees → (B, 2, 1, 1), the points at ``times`` the angle; one time more in train mode."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, degrees):
        angle = torch.deg2rad(degrees * (self.times + self.training))
        return torch.stack([angle.cos(), angle.sin()], dim=1)[:, :, None, None]


class Circle(nn.Module):
    """A network of `Turn` blocks, all of one stage, that notes under what it runs."""

    def __init__(self, blocks, final):
        super().__init__()
        self.layer1 = nn.Sequential(*map(Turn, blocks))
        self.final = Turn(final)
        self.seen = []

    def blocks(self):
        return [Block(f"layer1.{i}", module, 1) for i, module in enumerate(self.layer1)]

    def pool(self, output):
        return output.mean(dim=(2, 3))

    def forward(self, images):
        self.seen.append(
            (
                torch.is_autocast_enabled("cpu"),
                torch.is_grad_enabled(),
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
            )
        )
        degrees = images.mean(dim=(1, 2, 3))
        for block in self.layer1:
            block(degrees)
        feats = self.pool(self.final(degrees))
        logits = torch.stack([45 - degrees, degrees - 45], dim=1)  # class 1 from 45 degrees on
        return ModelOutput(logits, feats, feats, (feats,) * 4)


def images(degrees, side):
    return torch.tensor(degrees)[:, None, None, None].expand(-1, 3, side, side).contiguous()


def networks():
    return Circle(BLOCKS, GALLERY_FINAL), Circle((), QUERY_FINAL)


def pairs():
    """The same batch twice: the scores are means over batches."""
    for _ in range(2):
        yield Pair(images([0.0, 90.0, 180.0], 2), images([0.0, 60.0, 0.0], 4), torch.tensor([0, 1, 0]))


def analysed(ratio, cross_resolution=True):
    cfg = get_cfg()
    cfg.merge_from_list(["RAHO.RATIO", ratio, "RAHO.CROSS_RESOLUTION", cross_resolution])
    gallery, query = networks()
    return analyse(cfg, SimpleNamespace(gallery=gallery, query=query), pairs)


def test_scores_are_those_worked_out_by_hand():
    scores = analysed(0.3)["scores"]
    assert list(scores) == [f"layer1.{i}" for i in range(1, 7)]
    assert [score["high"] for score in scores.values()] == pytest.approx(HIGH, abs=1e-5)
    assert [score["cross"] for score in scores.values()] == pytest.approx(CROSS, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "cross_resolution", "at_both", "at_high_only"),
    [
        # int(6 · 0.3) = 1 a view: block 3 at high resolution, block 5 at the cross resolution
        (0.3, True, [], ["layer1.3"]),
        (0.3, False, ["layer1.3"], []),
        # int(6 · 0.5) = 3 a view: 1, 3 and 6 at high resolution; 2, 3 and 5 at the cross resolution
        (0.5, True, ["layer1.3"], ["layer1.1", "layer1.6"]),
        (0.5, False, ["layer1.1", "layer1.3", "layer1.6"], []),
    ],
)
def test_tiers_are_those_worked_out_by_hand(ratio, cross_resolution, at_both, at_high_only):
    groups = analysed(ratio, cross_resolution)["groups"]
    assert groups["unimportant_at_both"] == at_both
    assert groups["unimportant_at_high_resolution_only"] == at_high_only
    unimportant = {*at_both, *at_high_only}
    assert groups["important"] == [name for i in range(7) if (name := f"layer1.{i}") not in unimportant]


def test_the_pass_runs_in_float32_and_eval_mode_whatever_surrounds_it():
    gallery, query = networks()
    gallery.train(), query.train()
    gallery.layer1[2].eval()  # a part that its user froze
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", torch.bfloat16):
            scores = measure_importance(gallery, query, pairs()).scores()
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
    assert set(gallery.seen + query.seen) == {(False, False, "highest", False)}
    assert [score["high"] for score in scores.values()] == pytest.approx(HIGH, abs=1e-5)
    assert [score["cross"] for score in scores.values()] == pytest.approx(CROSS, abs=1e-5)
    assert gallery.training and query.training and gallery.layer1[1].training, "modes are put back"
    assert not gallery.layer1[2].training, "a part's own mode too"
