"""Evaluation: which network sees which images at which size, and in which arithmetic."""

import pytest
import torch
from torch import nn

from d3still.config import load_config
from d3still.engine.distributed import Rank
from d3still.engine.retrieval import evaluate
from d3still.engine.setup import Data, open_dataset
from d3still.modeling import ModelOutput
from tests.tiny import REPOSITORY, overrides

CPU = torch.device("cpu")
SIZES = {  # each key its own, so that none can stand in for another
    "INPUT.STUDENT_SIZE_TRAIN": [18, 20],
    "INPUT.STUDENT_SIZE_TEST": [22, 24],
    "INPUT.TEACHER_SIZE_TRAIN": [26, 28],
    "INPUT.TEACHER_SIZE_TEST": [30, 32],
    "INPUT.SIZE_TRAIN": [34, 36],
    "INPUT.SIZE_TEST": [38, 40],
}


class Spy(nn.Module):
    """Gives the mean colours as features and notes the images' sizes and the state of the arithmetic."""

    feature_width = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.sizes, self.arithmetic, self.images = set(), set(), 0

    def forward(self, images):
        self.sizes.add(tuple(images.shape[2:]))
        self.images += len(images)
        self.arithmetic.add(
            (
                self.training,
                torch.is_autocast_enabled("cpu"),
                torch.is_grad_enabled(),
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
            )
        )
        feats = images.mean(dim=(2, 3)) @ self.weight
        return ModelOutput(feats, feats, feats, (feats,) * 4)


def evaluated(veri, stage, query, gallery):
    cfg = load_config(REPOSITORY / f"configs/veri/{stage}.yaml", overrides(veri, "log", **SIZES))
    data = Data(cfg, open_dataset(cfg), Rank(), CPU)
    return evaluate(cfg, data, query, gallery, CPU)


@pytest.mark.parametrize(
    ("stage", "query_size", "gallery_size"),
    [
        ("vanilla", None, "STUDENT_SIZE_TEST"),
        ("rop", "STUDENT_SIZE_TEST", "TEACHER_SIZE_TEST"),
        ("acd_rop", "STUDENT_SIZE_TEST", "SIZE_TEST"),
    ],
)
def test_each_network_sees_images_of_its_own_size_only(veri, stage, query_size, gallery_size):
    """AIR: query network on the queries at the query's size. SIR: gallery network on both at the gallery's."""
    query, gallery = None if query_size is None else Spy(), Spy()
    evaluation = evaluated(veri, stage, query, gallery)
    assert gallery.sizes == {tuple(SIZES[f"INPUT.{gallery_size}"])}
    assert gallery.images == 6 + 18, "queries and gallery"
    if query is not None:
        assert query.sizes == {tuple(SIZES[f"INPUT.{query_size}"])} and query.images == 6
    assert list(evaluation.results) == (["SIR"] if query is None else ["AIR", "SIR"])


def test_evaluation_runs_in_float32_without_tf32_whatever_surrounds_it(veri):
    query, gallery = Spy().train(), Spy().train()
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", torch.bfloat16):
            evaluated(veri, "rop", query, gallery)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32, "and puts it back"
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
    assert query.arithmetic == gallery.arithmetic == {(False, False, False, "highest", False)}
    assert query.training and gallery.training
