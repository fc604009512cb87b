"""BCT: Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020; in HVS too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.config.rules import NOT_NEGATIVE
from d3still.distillers.base import LABEL_SMOOTHING, Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision
from d3still.modeling import ModelOutput


@full_precision
def bct_loss(
    learner_feat: Tensor, frozen_classifier: Tensor, labels: Tensor, label_smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """Cross entropy of the learner's features under the frozen network's classifier, mean over the batch.

    Args:
        learner_feat: (B, D) raw features of the network that learns.
        frozen_classifier: W, (classes, D), of the other network, without bias; it gets no gradient.
        labels: (B,) identities from 0.
        label_smoothing: share of the target spread over all classes, 0 to 1.
    """
    return F.cross_entropy(learner_feat @ frozen_classifier.detach().T, labels, label_smoothing=label_smoothing)


@DISTILLERS.register("BCT", defaults={"KD_WEIGHT": (1.0, NOT_NEGATIVE)})
class BCT(Distiller):
    """`bct_loss` of the learner's ``retrieval_feat``: under the gallery's classifier, and in stage 2 the query's."""

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        learned = query if self.learner == "query" else gallery
        classifier = self.frozen_network.fc.classifier.weight
        return bct_loss(learned.retrieval_feat, classifier, labels, self.supervised.label_smoothing)
