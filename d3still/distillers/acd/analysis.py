"""RAHO's pass over the data: block outputs of the gallery network at both resolutions."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from torch import Tensor, nn

from d3still.distillers.acd.importance import BlockImportance
from d3still.distillers.base import Pair
from d3still.losses.global_batch import global_batch
from d3still.modeling.inference import exact_inference


class BlockRecorder:
    """Context manager that records the pooled output of every block by forward hooks, removed on leaving."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.blocks = network.blocks()
        self._outputs: list[Tensor] = []

    def __enter__(self) -> BlockRecorder:
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._outputs.append(self.network.pool(output))

        self._hooks = [block.module.register_forward_hook(record) for block in self.blocks]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> list[Tensor]:
        """Outputs since the last call, one (B, C_i) a block, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs


def measure_importance(gallery: nn.Module, query: nn.Module, pairs: Iterable[Pair]) -> BlockImportance:
    """Score the gallery network's blocks on pair batches (METHOD, RAHO), both networks as in `exact_inference`.

    The published analysis runs in float32: lower precision moves blocks into other tiers. ``pairs`` are on the
    networks' device. With several ranks, all score the global batches and come to the same result.
    """
    importance = BlockImportance([(block.name, block.stage) for block in gallery.blocks()])
    with exact_inference(gallery, query), BlockRecorder(gallery) as recorder:
        for pair in pairs:
            high = gallery(pair.high)
            high_feats = recorder.take()
            low = gallery(pair.low)
            importance.update(
                [global_batch(feats) for feats in high_feats],
                global_batch(high.retrieval_feat),
                [global_batch(feats) for feats in recorder.take()],
                global_batch(query(pair.low).retrieval_feat),
                global_batch(low.logits.argmax(1)) == global_batch(pair.labels),
            )
    return importance
