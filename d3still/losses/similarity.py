"""Similarity and distance matrices that the relational losses share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d3still.errors import UserError

# Below this squared distance the square root has no useful gradient (METHOD: d = sqrt(max(d², 1e-12))).
SQUARED_DISTANCE_FLOOR = 1e-12


def cosine_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosine of every row of ``rows`` (B, D) with every row of ``columns`` (C, D): (B, C) in [-1, 1]."""
    return F.normalize(rows) @ F.normalize(columns).T


def squared_distance_matrix(feats: Tensor) -> Tensor:
    """Squared Euclidean distances within ``feats`` (B, D), as ‖x‖² + ‖y‖² − 2x·y: (B, B).

    Rounding can leave values slightly below zero; callers clamp before a root.
    """
    squares = feats.square().sum(1)
    return squares[:, None] + squares[None, :] - 2 * feats @ feats.T


def nearest_by_gallery(query_feat: Tensor, gallery_feat: Tensor, topk: int, setting: str) -> tuple[Tensor, Tensor]:
    """For each image the similarities of its ``topk`` best neighbours as the gallery network ranks them.

    Args:
        query_feat, gallery_feat: (B, D) features of one batch by the two networks, raw.
        topk: neighbours kept an image, itself included; at most B.
        setting: the config key of ``topk``, for the error.

    Returns:
        ``(gallery_sim, query_sim)``, each (B, topk): S_gg and S_qg at the neighbours, best S_gg first.

    Raises:
        UserError: when ``topk`` is below 1 or above the batch.
    """
    batch = len(gallery_feat)
    if not 1 <= topk <= batch:
        raise UserError(
            f"{setting} is {topk}, but the pair batch holds {batch} images; set {setting} to 1…{batch} "
            "or raise SOLVER.IMS_DISTILLATION_PER_BATCH"
        )
    gallery_all = cosine_matrix(gallery_feat, gallery_feat)
    gallery_sim, neighbours = gallery_all.topk(topk, dim=1)
    query_sim = cosine_matrix(query_feat, gallery_feat).gather(1, neighbours)
    return gallery_sim, query_sim


def need_two_images(feats: Tensor, loss: str) -> None:
    """Refuse a batch of one image, for which a relation between images is not defined."""
    if len(feats) < 2:
        raise UserError(
            f"{loss} compares images and needs at least 2 in a pair batch; raise SOLVER.IMS_DISTILLATION_PER_BATCH"
        )
