"""SSP: Wu et al., "Structure Similarity Preservation Learning for Asymmetric Image Retrieval", arXiv:2403.00648."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from d3still.config.rules import AT_LEAST_1, AT_LEAST_2, NOT_NEGATIVE, POSITIVE
from d3still.distillers.base import Distiller, Pairs
from d3still.distillers.registry import DISTILLERS
from d3still.errors import UserError
from d3still.losses import full_precision
from d3still.losses.global_batch import first_ranks, global_batch
from d3still.modeling import ModelOutput
from d3still.modeling.inference import exact_inference

logger = logging.getLogger(__name__)

IMAGES_A_CENTROID = 4  # at least
_ITERATIONS = 25


@full_precision
def ssp_loss(query_feat: Tensor, gallery_feat: Tensor, anchors: Tensor, scale: float = 10.0) -> Tensor:
    """Divergence between both networks' similarities to anchors, part by part.

    A feature is cut into M parts of D / M numbers; parts and anchors are L2-normalised and
    p = softmax(scale · cosine) over the K anchors of the part. KL(p_gallery ‖ p_query), summed over anchors, mean
    over images and parts. To let the gallery network learn from the query network, exchange the two features.

    Args:
        query_feat, gallery_feat: (B, D) raw features; the second one's probabilities are the target.
        anchors: (M, K, D / M) centroids, see `product_quantiser`.
        scale: what cosines are multiplied with.
    """
    log_query, log_gallery = (_log_similarities(feat, anchors, scale) for feat in (query_feat, gallery_feat))
    return (log_gallery.exp() * (log_gallery - log_query)).sum(2).mean()


def _log_similarities(feat: Tensor, anchors: Tensor, scale: float) -> Tensor:
    """log p of each part's anchors (B, M, K)."""
    parts = F.normalize(feat.unflatten(1, (len(anchors), -1)), dim=2)
    anchors = F.normalize(anchors.to(feat.dtype), dim=2)
    return (scale * torch.einsum("bmd,mkd->bmk", parts, anchors)).log_softmax(2)


def product_quantiser(feats: Tensor, parts: int, centroids: int) -> Tensor:
    """Centroids of a product quantiser: k-means (scipy's, from seeded images) in each part of the features.

    Args:
        feats: (N, D) raw features, L2-normalised here.
        parts: M, by which D must be divisible.
        centroids: K, at most a quarter of N.

    Returns:
        (M, K, D / M) float32, on the CPU, the same for the same features.
    """
    data = F.normalize(feats.float()).cpu().unflatten(1, (parts, -1)).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of centroids that no image is nearest to: they stay where they are
        found = [
            kmeans2(part, centroids, _ITERATIONS, minit="points", rng=np.random.default_rng(0))[0]
            for part in np.moveaxis(data, 1, 0)
        ]
    return torch.from_numpy(np.stack(found)).float()


@DISTILLERS.register(
    "SSP",
    defaults={
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
        "PARTS": (32, AT_LEAST_1),  # that a feature is cut into
        "CENTROIDS": (256, AT_LEAST_2),  # anchors a part; a quarter of the training images where that is less
        "SCALE": (10.0, POSITIVE),  # of cosines before the softmax
    },
)
class SSP(Distiller):
    """`ssp_loss` on ``retrieval_feat``; the frozen network's similarities are the target in both stages."""

    def __init__(self, *, parts: int, centroids: int, scale: float, **common: Any) -> None:
        super().__init__(**common)
        width = self.gallery.feature_width
        if width % parts:
            raise UserError(f"SSP.PARTS is {parts}, which does not divide the {width} numbers of a feature")
        self.parts, self.centroids, self.scale = parts, centroids, scale

    def prepare(self, pairs: Pairs) -> None:
        if not self.kd_weight:
            return
        network = self.frozen_network
        with exact_inference(network):
            views = (pair.high if self.learner == "query" else pair.low for pair in pairs())
            feats = torch.cat([global_batch(network(view).retrieval_feat) for view in views])
        centroids = min(self.centroids, len(feats) // IMAGES_A_CENTROID)
        if centroids < 2:
            raise UserError(f"SSP needs anchors from at least {2 * IMAGES_A_CENTROID} images, not {len(feats)}")
        fewer = f", a quarter of the images instead of {self.centroids}" if centroids < self.centroids else ""
        logger.info("SSP: %d parts of %d anchors each from %d images%s", self.parts, centroids, len(feats), fewer)
        anchors = product_quantiser(feats, self.parts, centroids)
        self.prepared["anchors"] = first_ranks(anchors.to(feats.device))

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        learned, fixed = (query, gallery) if self.learner == "query" else (gallery, query)
        if "anchors" not in self.prepared:
            raise UserError("SSP has no anchors yet: call prepare(pairs) before the first step")
        return ssp_loss(learned.retrieval_feat, fixed.retrieval_feat, self.prepared["anchors"], self.scale)
