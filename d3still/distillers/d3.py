"""D3still: Xie et al., "D3still: Decoupled Differential Distillation for Asymmetric Image Retrieval", CVPR 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from d3still.config.rules import AT_LEAST_2, NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.errors import UserError
from d3still.losses import full_precision
from d3still.losses.similarity import nearest_by_gallery

DAMPING = 0.1  # added to |Δg| before dividing by it (METHOD, D3)


@full_precision
def d3_loss(query_feat: Tensor, gallery_feat: Tensor, topk: int, alpha: float, beta: float, gamma: float) -> Tensor:
    """Similarity to oneself, plus relative errors of pairwise similarity differences, split by agreement.

    With each row of S_gg ranked (rank 1 is the image itself), α·‖g₁ − q₁‖₂/B over the batch; on ranks
    2…topk the entries (Δq − Δg)/(0.1 + |Δg|) over ordered pairs, those whose Δq and Δg differ in sign
    weighted β, those that agree γ; one L2 norm an image and kind, batch mean, divided by topk − 1.

    Args:
        query_feat, gallery_feat: (B, D) raw features.
        topk: ranks used, 2…B (``D3.TOPK``).
        alpha, beta, gamma: weights of the self, the inconsistent and the consistent part.

    Raises:
        UserError: when ``topk`` does not fit the batch or leaves no pair.
    """
    if topk < 2:
        raise UserError(f"D3.TOPK is {topk}; it needs at least 2, since rank 1 is the image itself")
    gallery_sim, query_sim = nearest_by_gallery(query_feat, gallery_feat, topk, "D3.TOPK")
    self_gap = torch.linalg.vector_norm(gallery_sim[:, 0] - query_sim[:, 0]) / len(gallery_sim)
    gallery_diff = _pairwise_differences(gallery_sim[:, 1:])
    query_diff = _pairwise_differences(query_sim[:, 1:])
    gallery_diff = torch.where(gallery_diff == 0, torch.ones_like(gallery_diff), gallery_diff)
    entries = (query_diff - gallery_diff) / (DAMPING + gallery_diff.abs())
    agreement = query_diff.detach() / gallery_diff.detach()
    inconsistent = torch.linalg.vector_norm(entries * (agreement < 0), dim=1).mean()
    consistent = torch.linalg.vector_norm(entries * (agreement > 0), dim=1).mean()
    return alpha * self_gap + (beta * inconsistent + gamma * consistent) / (topk - 1)


def _pairwise_differences(sim: Tensor) -> Tensor:
    """(B, n) → (B, n²): entry b − entry a for all ordered pairs."""
    return (sim[:, None, :] - sim[:, :, None]).flatten(1)


@DISTILLERS.register(
    "D3",
    defaults={
        "TOPK": (10, AT_LEAST_2),  # ranks that count, the image itself first, among the pair batch
        "ALPHA": 50.0,  # weight of the distance between both features of an image
        "BETA": 2.0,  # weight of differences that the query network orders the other way round
        "GAMMA": 1.0,  # weight of differences that it orders alike
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class D3(Distiller):
    """`d3_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(d3_loss)
