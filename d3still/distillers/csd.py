"""CSD: Wu et al., "Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR 2022."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from d3still.config.rules import AT_LEAST_1, NOT_NEGATIVE, TEMPERATURE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision, kl_divergence
from d3still.losses.similarity import nearest_by_gallery


@full_precision
def csd_loss(
    query_feat: Tensor, gallery_feat: Tensor, topk: int, query_temperature: float, gallery_temperature: float
) -> Tensor:
    """KL between the two networks' similarity profiles over each image's gallery neighbours.

    The gallery's probabilities are a target without gradient; on the gallery side the gradient flows
    through the anchors of S_qg.

    Args:
        query_feat, gallery_feat: (B, D) raw features.
        topk: neighbours an image by S_gg, at most B (``CSD.TOPK``).
        query_temperature, gallery_temperature: softmax temperatures of S_qg and S_gg.

    Raises:
        UserError: when ``topk`` does not fit the batch.
    """
    gallery_sim, query_sim = nearest_by_gallery(query_feat, gallery_feat, topk, "CSD.TOPK")
    return kl_divergence(gallery_sim.detach() / gallery_temperature, query_sim / query_temperature, temperature=1.0)


@DISTILLERS.register(
    "CSD",
    defaults={
        "TOPK": (96, AT_LEAST_1),  # neighbours an image, itself included, among the pair batch
        "TEMPERATURE_QUERY": (1.0, TEMPERATURE),
        "TEMPERATURE_GALLERY": (0.01, TEMPERATURE),
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class CSD(Distiller):
    """`csd_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(csd_loss)

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = super().settings(cfg)
        for side in ("query", "gallery"):
            settings[f"{side}_temperature"] = settings.pop(f"temperature_{side}")
        return settings
