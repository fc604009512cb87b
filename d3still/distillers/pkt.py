"""PKT: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018."""

from __future__ import annotations

import torch
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision

EPSILON = 1e-7  # keeps norms and probabilities from zero (published code)


@full_precision
def pkt_loss(query_feat: Tensor, gallery_feat: Tensor) -> Tensor:
    """Divergence between the two networks' neighbour probabilities within the batch.

    Each row of (cosine + 1)/2 divided by its sum is a distribution, the image itself included;
    the mean over all B² entries of p_g·log(p_g/p_q).

    Args:
        query_feat, gallery_feat: (B, D) raw features.
    """
    target, prediction = _neighbour_probabilities(gallery_feat), _neighbour_probabilities(query_feat)
    return (target * torch.log((target + EPSILON) / (prediction + EPSILON))).mean()


def _neighbour_probabilities(feat: Tensor) -> Tensor:
    unit = feat / (torch.linalg.vector_norm(feat, dim=1, keepdim=True) + EPSILON)
    affinity = (unit @ unit.T + 1) / 2
    return affinity / affinity.sum(1, keepdim=True)


@DISTILLERS.register("PKT", defaults={"KD_WEIGHT": (30000.0, NOT_NEGATIVE)})
class PKT(Distiller):
    """`pkt_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(pkt_loss)
