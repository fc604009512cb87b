"""UGD: unified global and local distillation for asymmetric re-identification (as in the D3Still codebase)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.config.rules import NOT_NEGATIVE, STAGE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.errors import UserError
from d3still.losses import full_precision
from d3still.losses.global_batch import global_sum, local_part, world_size
from d3still.modeling import ModelOutput

GRID_STRIDE = 16  # pixels of the query image a cell of the finer grid


@full_precision
def ugd_global_loss(query_feat: Tensor, gallery_feat: Tensor) -> Tensor:
    """Mean Euclidean distance between the L2-normalised (B, D) features of both networks."""
    return torch.linalg.vector_norm(F.normalize(gallery_feat) - F.normalize(query_feat), dim=1).mean()


def ugd_local_loss(
    query_map: Tensor,
    gallery_map: Tensor,
    labels: Tensor,
    grid: int,
    project: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    classify: Callable[[Tensor], Tensor],
) -> Tensor:
    """Mean distance between corresponding cells, over the cells that the gallery network recognises.

    Args:
        query_map, gallery_map: (B, C, H, W) of one network each, of any sizes.
        labels: (B,) identities.
        grid: both maps are average-pooled to grid × grid cells.
        project: query cells (N, C_q) → (N, D), the learnable projector.
        embed, classify: the gallery head, cells (N, C_g) → (N, D) → logits.

    Returns:
        The mean over cells of the whole batch whose gallery logits are right; 0 if there is none.
    """
    query_cells, gallery_cells = _cells(query_map, grid), _cells(gallery_map, grid)
    gallery_feat = embed(gallery_cells)
    right = classify(gallery_feat).argmax(1) == labels.repeat_interleave(grid * grid)
    return _masked_mean_distance(project(query_cells), gallery_feat, right)


def _cells(feature_map: Tensor, grid: int) -> Tensor:
    """(B, C, H, W) → (B·grid², C), the cells of an image in a row."""
    return F.adaptive_avg_pool2d(feature_map, grid).flatten(2).transpose(1, 2).flatten(0, 1)


@full_precision
def _masked_mean_distance(query_feat: Tensor, gallery_feat: Tensor, mask: Tensor) -> Tensor:
    distance = torch.linalg.vector_norm(F.normalize(gallery_feat) - F.normalize(query_feat), dim=1)
    count = global_sum(mask.sum()).clamp(min=1)
    # a rank's share of the mean over all ranks, times their number, since gradients are averaged over ranks
    return (distance * mask).sum() / count * world_size()


def _projector(channels: int, width: int) -> nn.Sequential:
    """BatchNorm1d → Linear without bias → BatchNorm1d: query cells to the embedding width."""
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width))


@DISTILLERS.register(
    "UGD",
    defaults={
        "DISTILLATION_LAYER": (3, STAGE),  # stage of the query network whose map is distilled, counted from 1
        "ALPHA": 2.0,  # weight of the global term
        "BETA": 2.0,  # weight of the local terms
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class UGD(Distiller):
    """α·`ugd_global_loss` + β·Σ over two grids of `ugd_local_loss`.

    The finer grid has (query height // 16) cells a side, the coarser half of that. The two projectors learn
    with the query network in stage 1, are saved with it, and stay frozen with it in stage 2.
    """

    def __init__(self, *, distillation_layer: int, alpha: float, beta: float, query_height: int, **common: Any) -> None:
        super().__init__(**common)
        channels: Sequence[int] = self.query.stage_channels
        if not 1 <= distillation_layer <= len(channels):
            raise UserError(
                f"UGD.DISTILLATION_LAYER is {distillation_layer}; {self.query.name} has stages 1…{len(channels)}"
            )
        self.stage, self.alpha, self.beta = distillation_layer - 1, alpha, beta
        fine = max(1, query_height // GRID_STRIDE)
        self.grids = (fine, max(1, fine // 2))
        for name in ("fine", "coarse"):
            self.extra[name] = _projector(channels[self.stage], self.gallery.feature_width)

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().settings(cfg) | {"query_height": cfg.INPUT.STUDENT_SIZE_TRAIN[0]}

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        loss = self.alpha * ugd_global_loss(query.retrieval_feat, gallery.retrieval_feat)
        if not self.beta:
            return loss
        head, own_labels = self.gallery.fc, local_part(labels)
        maps = query.feature_maps[self.stage], gallery.feature_maps[-1]
        local = [
            ugd_local_loss(*maps, own_labels, grid, projector, head.add_block, head.classifier)
            for grid, projector in zip(self.grids, self.extra.values(), strict=True)
        ]
        return loss + self.beta * sum(local)
