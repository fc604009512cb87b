"""Triplet losses on Euclidean distances within a batch, and the table of their names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d3still.errors import UserError
from d3still.losses.full_precision import full_precision
from d3still.losses.similarity import SQUARED_DISTANCE_FLOOR, squared_distance_matrix

METHODS = ("batch_hard", "batch_soft", "batch_sample")


@full_precision
def triplet_loss(feats: Tensor, labels: Tensor, margin: float = 0.3, method: str = "batch_hard") -> Tensor:
    """Triplet loss over all anchors of a batch (Hermans et al. 2017), features not normalised.

    The anchor itself is among its positives, so an identity with one image still pushes negatives away.
    An anchor without any negative counts as 0, also in the mean.

    Args:
        feats: (B, D), compared by Euclidean distance.
        labels: (B,) identities.
        margin: used by ``batch_hard`` and ``batch_sample``; ``batch_soft`` has the soft margin log(1 + eˣ).
        method: ``batch_hard`` (farthest positive, nearest negative), ``batch_soft`` (softmax-weighted means
            of both) or ``batch_sample`` (one of each, drawn by the same softmax).

    Raises:
        UserError: for an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"EXPERIMENT.TRIPLET_METHOD '{method}' is not known; choose one of {', '.join(METHODS)}")
    distance = squared_distance_matrix(feats).clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()
    positive = labels[:, None] == labels[None, :]
    negative = ~positive
    if method == "batch_hard":
        farthest = distance.masked_fill(negative, -torch.inf).amax(1)
        nearest = distance.masked_fill(positive, torch.inf).amin(1)
        return F.relu(farthest - nearest + margin).mean()
    has_negative = negative.any(1)
    weighed = distance.detach() if method == "batch_sample" else distance
    positive_weight, negative_weight = _masked_softmax(weighed, positive), _masked_softmax(-weighed, negative)
    if method == "batch_sample":
        to_positive = distance.gather(1, torch.multinomial(positive_weight, 1))[:, 0]
        to_negative = distance.gather(1, torch.multinomial(negative_weight, 1))[:, 0]
        return (F.relu(to_positive - to_negative + margin) * has_negative).mean()
    to_positive = (positive_weight * distance).sum(1)
    to_negative = (negative_weight * distance).sum(1)
    return (F.softplus(to_positive - to_negative) * has_negative).mean()


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the entries of each row where ``mask`` holds; uniform where it holds nowhere."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1)
