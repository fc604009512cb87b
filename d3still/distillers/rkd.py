"""RKD: Park et al., "Relational Knowledge Distillation", CVPR 2019."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision, need_two_images
from d3still.losses.similarity import SQUARED_DISTANCE_FLOOR, squared_distance_matrix

SHORTEST = 1e-12  # keeps a direction's length from zero


@full_precision
def rkd_loss(
    query_feat: Tensor,
    gallery_feat: Tensor,
    distance_weight: float,
    angle_weight: float,
    squared: bool = False,
    epsilon: float = SQUARED_DISTANCE_FLOOR,
) -> Tensor:
    """Smooth-L1 between the two networks' relative distances and between their angles.

    The gallery side is a target without gradient: in stage 2 this term teaches nothing.

    Args:
        query_feat, gallery_feat: (B, D) raw features, B ≥ 2.
        distance_weight, angle_weight: weights of the two parts (25 and 50 as published).
        squared: compare squared distances.
        epsilon: floor of a squared distance.
    """
    need_two_images(query_feat, "RKD")
    gallery_feat = gallery_feat.detach()
    distance = F.smooth_l1_loss(
        _relative_distances(query_feat, squared, epsilon), _relative_distances(gallery_feat, squared, epsilon)
    )
    angle = F.smooth_l1_loss(_angles(query_feat), _angles(gallery_feat))
    return distance_weight * distance + angle_weight * angle


def _relative_distances(feat: Tensor, squared: bool, epsilon: float) -> Tensor:
    """(B, B) distances divided by the mean of the positive ones, with a zero diagonal."""
    distance = squared_distance_matrix(feat).clamp(min=epsilon)
    if not squared:
        distance = distance.sqrt()
    distance = distance.masked_fill(torch.eye(len(feat), dtype=torch.bool, device=feat.device), 0)
    positive = distance > 0
    return distance / ((distance * positive).sum() / positive.sum())


def _angles(feat: Tensor) -> Tensor:
    """(B, B, B) cosines of the angle at each image i between the directions to j and to k."""
    differences = feat[None, :, :] - feat[:, None, :]
    lengths = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    # two identical images have no direction: 0 without gradient, instead of a gradient of 1e12
    directions = torch.where(lengths > 0, differences / lengths.clamp(min=SHORTEST), 0.0)
    return torch.bmm(directions, directions.transpose(1, 2))


@DISTILLERS.register(
    "RKD",
    defaults={
        "DISTANCE_WEIGHT": 25.0,
        "ANGLE_WEIGHT": 50.0,
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
        "PDIST": {
            "EPSILON": 1e-12,  # the least squared distance
            "SQUARED": False,  # compare squared distances
        },
    },
)
class RKD(Distiller):
    """`rkd_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(rkd_loss)

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = super().settings(cfg)
        distances = settings.pop("pdist")
        return settings | {"squared": distances.SQUARED, "epsilon": distances.EPSILON}
