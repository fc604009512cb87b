"""Kullback–Leibler divergence between two sets of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.losses.full_precision import full_precision


@full_precision
def kl_divergence(target_logits: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """τ²·KL(softmax(target/τ) ‖ softmax(logits/τ)), summed over classes, averaged over the batch.

    Gradient flows into both sides; detach the one that is only a target.

    Args:
        target_logits, logits: (B, classes).
        temperature: τ > 0. The factor τ² keeps the gradient's size (Hinton et al. 2015, section 2).
    """
    target = F.log_softmax(target_logits / temperature, dim=1)
    prediction = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(prediction, target, reduction="batchmean", log_target=True)
