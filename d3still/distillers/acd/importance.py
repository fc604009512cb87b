"""RAHO's measure: how important each block of the gallery network is for retrieval, at both resolutions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.losses import cosine_matrix, full_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportanceGroups:
    """Names of all blocks by tier (METHOD, RAHO), in the network's order; block 0 counts as important."""

    unimportant_at_both: list[str]
    unimportant_at_high_resolution_only: list[str]
    important: list[str]

    def __getitem__(self, tier: str) -> list[str]:
        """The names of one tier, by its field's name."""
        return getattr(self, tier)


class BlockImportance:
    """Scores of a network's blocks, gathered over batches.

    A block's score is how far it moves the batch's similarity structure towards the final one:
    D_{i−1} − D_i, where D_i = mean over rows of ‖S(final) − S(b_i)‖₂. Block 0 has no score.

    Args:
        blocks: ordered (name, stage) of every block; stages are compared for equality only.

    Raises:
        UserError: for fewer than two blocks.
    """

    def __init__(self, blocks: Sequence[tuple[str, int]]) -> None:
        if len(blocks) < 2:
            raise UserError(
                f"RAHO compares consecutive blocks and needs at least 2; the gallery network has {len(blocks)}"
            )
        self.blocks = list(blocks)
        self._sums = {"high": torch.zeros(len(blocks) - 1), "cross": torch.zeros(len(blocks) - 1)}
        self._batches = {"high": 0, "cross": 0}

    @torch.no_grad()
    def update(
        self,
        high_feats: Sequence[Tensor],
        gallery_final_high: Tensor,
        low_feats: Sequence[Tensor],
        query_final_low: Tensor,
        classified_right: Tensor,
    ) -> None:
        """Add one batch.

        Args:
            high_feats: per block (B, C_i), the pooled outputs on the high-resolution view, raw.
            gallery_final_high: (B, D) gallery ``retrieval_feat`` on the high-resolution view.
            low_feats: per block (B, C_i), the gallery network's pooled outputs on the low-resolution view.
            query_final_low: (B, D) query ``retrieval_feat`` on the low-resolution view.
            classified_right: (B,) whether the gallery network names each low-resolution image right; where
                it names none, the batch adds nothing to the cross-resolution score.
        """
        self._add("high", high_feats, gallery_final_high)
        kept = classified_right.to(query_final_low.device, torch.bool)
        if kept.any():
            self._add("cross", [feats[kept] for feats in low_feats], query_final_low[kept])

    def scores(self) -> dict[str, dict[str, float]]:
        """Per scored block: mean scores ``high``, ``cross`` and their stage-normalised forms."""
        columns: dict[str, Tensor] = {}
        for view in ("high", "cross"):
            mean = self._sums[view] / max(1, self._batches[view])
            columns[view] = mean
            columns[f"normalised_{view}"] = self._normalise(mean)
        return {
            name: {key: float(values[i]) for key, values in columns.items()}
            for i, (name, _) in enumerate(self.blocks[1:])
        }

    def groups(self, ratio: float, cross_resolution: bool) -> ImportanceGroups:
        """Tiers of the blocks: view by view, the lowest int(n·ratio) scored ones by normalised score are unimportant.

        Args:
            ratio: p in [0, 1].
            cross_resolution: whether a block must be unimportant at the cross resolution too for the full rate.

        Raises:
            UserError: when no batch was seen.
        """
        if not self._batches["high"]:
            raise UserError(
                "RAHO saw no batch, so no block has a score; the pair loader must give at least one "
                "(SOLVER.IMS_DISTILLATION_PER_BATCH, RAHO.MAX_BATCHES)"
            )
        if cross_resolution and not self._batches["cross"]:
            logger.warning(
                "RAHO: the gallery network classified no low-resolution image right, so the cross-resolution "
                "view says nothing; groups follow the high-resolution view alone"
            )
            cross_resolution = False
        low_high = self._lowest("high", ratio)
        low_both = low_high & self._lowest("cross", ratio) if cross_resolution else low_high
        names = list(enumerate((name for name, _ in self.blocks), start=-1))  # block 0 has no score
        return ImportanceGroups(
            [name for i, name in names if i in low_both],
            [name for i, name in names if i in low_high - low_both],
            [name for i, name in names if i not in low_high],
        )

    def _add(self, view: str, feats: Sequence[Tensor], final: Tensor) -> None:
        if len(feats) != len(self.blocks):
            raise ValueError(f"{len(feats)} block outputs for {len(self.blocks)} blocks")
        distances = torch.stack([_structure_distance(final, block) for block in feats])
        self._sums[view] = self._sums[view].to(distances.dtype) + (distances[:-1] - distances[1:]).cpu()
        self._batches[view] += 1

    def _normalise(self, scores: Tensor) -> Tensor:
        """Softmax within each stage, times the number of its scored blocks, so that stages compare."""
        normalised = torch.empty_like(scores)
        stages = [stage for _, stage in self.blocks[1:]]
        for stage in dict.fromkeys(stages):
            members = torch.tensor([i for i, other in enumerate(stages) if other == stage])
            normalised[members] = scores[members].softmax(0) * len(members)
        return normalised

    def _lowest(self, view: str, ratio: float) -> set[int]:
        normalised = self._normalise(self._sums[view] / max(1, self._batches[view]))
        return set(normalised.argsort(stable=True)[: int(len(normalised) * ratio)].tolist())


@full_precision
def _structure_distance(final: Tensor, block: Tensor) -> Tensor:
    """D: mean over rows of ‖S(final) − S(block)‖₂ between cosine matrices of one batch."""
    gap = cosine_matrix(final, final) - cosine_matrix(block, block)
    return torch.linalg.vector_norm(gap, dim=1).mean()
