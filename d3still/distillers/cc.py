"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision, need_two_images


@full_precision
def cc_loss(query_feat: Tensor, gallery_feat: Tensor, normalize: bool = True) -> Tensor:
    """Correlation of the feature gap between neighbours in the batch.

    With d = |f_q − f_g|, the mean over consecutive images i, i + 1 of Σ d_i·d_{i+1}.

    Args:
        query_feat, gallery_feat: (B, D) raw features, B ≥ 2.
        normalize: L2-normalise both first.
    """
    need_two_images(query_feat, "CC")
    if normalize:
        query_feat, gallery_feat = F.normalize(query_feat), F.normalize(gallery_feat)
    gap = (query_feat - gallery_feat).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()


@DISTILLERS.register(
    "CC",
    defaults={
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
        "NORMALIZE": True,  # L2-normalise the features first
    },
)
class CC(Distiller):
    """`cc_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(cc_loss)
