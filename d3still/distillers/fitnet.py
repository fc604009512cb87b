"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, on the embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision


@full_precision
def fitnet_loss(query_feat: Tensor, gallery_feat: Tensor) -> Tensor:
    """Mean squared error between the raw (B, D) features of both networks."""
    return F.mse_loss(query_feat, gallery_feat)


@DISTILLERS.register("FitNet", section="FITNET", defaults={"KD_WEIGHT": (2.0, NOT_NEGATIVE)})
class FitNet(Distiller):
    """`fitnet_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(fitnet_loss)
