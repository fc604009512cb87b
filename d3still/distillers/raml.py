"""RAML: Suma and Tolias, "Large-to-Small Image Resolution Asymmetry in Deep Metric Learning", WACV 2023."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import cosine_matrix, full_precision, need_two_images

EPSILON = 1e-6  # added to every difference before it is squared (published code)


@full_precision
def raml_loss(query_feat: Tensor, gallery_feat: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """Absolute and relative alignment of the two spaces.

    mean (1 − cos(f_q, f_g) + ε)² + λ1 · mean over i ≠ j of (S_qg − S_gg + ε)² + λ2 · the same with S_qq.

    Args:
        query_feat, gallery_feat: (B, D) raw features, B ≥ 2.
        lambda1, lambda2: weights of the asymmetric and the symmetric relation.
    """
    need_two_images(query_feat, "RAML")
    query_gallery = cosine_matrix(query_feat, gallery_feat)
    absolute = (1 - F.cosine_similarity(query_feat, gallery_feat) + EPSILON).square().mean()
    target = _off_diagonal(cosine_matrix(gallery_feat, gallery_feat))
    asymmetric = (_off_diagonal(query_gallery) - target + EPSILON).square().mean()
    symmetric = (_off_diagonal(cosine_matrix(query_feat, query_feat)) - target + EPSILON).square().mean()
    return absolute + lambda1 * asymmetric + lambda2 * symmetric


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The B·(B − 1) entries of a square ``matrix`` (B, B) that are not on its diagonal, as (B − 1, B)."""
    size = len(matrix)
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1]


@DISTILLERS.register(
    "RAML",
    defaults={
        "LAMBDA1": 0.7482,  # weight of the relations between both networks' features
        "LAMBDA2": 0.7482,  # of those among query features; published 0.6778, but the runs used LAMBDA1 for both
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class RAML(Distiller):
    """`raml_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(raml_loss)
