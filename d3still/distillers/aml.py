"""AML: Budnik and Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", CVPR 2021."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE, Rule
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import cosine_matrix, full_precision
from d3still.modeling import ModelOutput


@full_precision
def aml_loss(
    query_feat: Tensor,
    gallery_feat: Tensor,
    labels: Tensor,
    margin: float = 0.7,
    regression_weight: float = 1.0,
    contrastive_weight: float = 1.0,
) -> Tensor:
    """Regression to the same image's gallery feature, and a contrastive term of query anchors among gallery features.

    With s cosines of a query feature (the anchor) and gallery features: regression is the mean of 1 − s of the same
    image; the contrastive term is the mean over anchors of the mean of 1 − s over *other* images of the anchor's
    identity, plus the mean of max(0, s − margin) over images of other identities. A mean over no image is 0.

    Few anchors of a plainly shuffled batch have a positive; ``DATALOADER.PAIR_SAMPLER: identity`` gives each some.

    The paper mines positives and negatives in the whole training set and leaves open how its terms are combined.
    Chosen here: all of the batch, each term a mean, so that neither depends on the batch's size; and s where the
    paper has Euclidean distances of unit vectors in places.

    Args:
        query_feat, gallery_feat: (B, D) raw features.
        labels: (B,) identities.
        margin: cosine up to which another identity costs nothing.
        regression_weight, contrastive_weight: weights of the two terms.
    """
    cosine = cosine_matrix(query_feat, gallery_feat)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    contrastive = _row_means(1 - cosine, positive) + _row_means(F.relu(cosine - margin), ~same)
    return regression_weight * (1 - cosine.diagonal()).mean() + contrastive_weight * contrastive.mean()


def _row_means(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each row's chosen entries (B,), 0 where there is none."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


@DISTILLERS.register(
    "AML",
    defaults={
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
        "MARGIN": (0.7, Rule("a cosine, between -1 and 1", lambda value: -1 <= value <= 1)),
        "REGRESSION_WEIGHT": (1.0, NOT_NEGATIVE),
        "CONTRASTIVE_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class AML(Distiller):
    """`aml_loss` on ``retrieval_feat``."""

    loss_function = staticmethod(aml_loss)

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        return aml_loss(query.retrieval_feat, gallery.retrieval_feat, labels, **self.options)
