"""VanillaKD: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015."""

from __future__ import annotations

from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE, TEMPERATURE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import kl_divergence
from d3still.modeling import ModelOutput


def kd_loss(query_logits: Tensor, gallery_logits: Tensor, temperature: float) -> Tensor:
    """τ²·KL(softmax(z_g/τ) ‖ softmax(z_q/τ)) on (B, classes) logits."""
    return kl_divergence(gallery_logits, query_logits, temperature)


@DISTILLERS.register(
    "VanillaKD",
    defaults={
        "TEMPERATURE": (2.0, TEMPERATURE),
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class VanillaKD(Distiller):
    """`kd_loss` on ``logits``."""

    loss_function = staticmethod(kd_loss)

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        return kd_loss(query.logits, gallery.logits, **self.options)
