"""RAHO's pass over the data: block outputs of the gallery network at both resolutions."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from d3still.distillers.acd.importance import BlockImportance
from d3still.distillers.base import Pair
from d3still.losses.global_batch import global_batch
from d3still.modeling import ModelOutput
from d3still.modeling.inference import exact_inference


def with_block_outputs(network: nn.Module, images: Tensor) -> tuple[ModelOutput, list[Tensor]]:
    """``network(images)``, and the pooled output (B, C_i) of each block, by forward hooks that are removed again."""
    pooled: list[Tensor] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        pooled.append(network.pool(output))

    hooks = [block.module.register_forward_hook(record) for block in network.blocks()]
    try:
        return network(images), pooled
    finally:
        for hook in hooks:
            hook.remove()


def measure_importance(gallery: nn.Module, query: nn.Module, pairs: Iterable[Pair]) -> BlockImportance:
    """Score the gallery network's blocks on pair batches (METHOD, RAHO), both networks as in `exact_inference`.

    The published analysis runs in float32: lower precision moves blocks into other tiers. ``pairs`` are on the
    networks' device. With several ranks, all score the global batches and come to the same result.
    """
    importance = BlockImportance([(block.name, block.stage) for block in gallery.blocks()])
    with exact_inference(gallery, query):
        for pair in pairs:
            high, high_feats = with_block_outputs(gallery, pair.high)
            low, low_feats = with_block_outputs(gallery, pair.low)
            importance.update(
                [global_batch(feats) for feats in high_feats],
                global_batch(high.retrieval_feat),
                [global_batch(feats) for feats in low_feats],
                global_batch(query(pair.low).retrieval_feat),
                global_batch(low.logits.argmax(1)) == global_batch(pair.labels),
            )
    return importance
