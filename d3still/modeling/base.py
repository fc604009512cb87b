"""What every retrieval network is to the rest of the toolbox."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from d3still.modeling.head import FEATURE_WIDTH, EmbeddingHead
from d3still.modeling.recompute import recomputed


class ModelOutput(NamedTuple):
    """What a network makes of a batch of images.

    Attributes:
        logits: (B, classes).
        retrieval_feat: (B, 512), not normalised.
        pooled_feat: (B, C), the global average of the last stage map.
        feature_maps: four stage maps (B, C_i, H_i, W_i), from fine to coarse.
    """

    logits: Tensor
    retrieval_feat: Tensor
    pooled_feat: Tensor
    feature_maps: tuple[Tensor, Tensor, Tensor, Tensor]


class Block(NamedTuple):
    """One residual or transformer block.

    Attributes:
        name: prefix of its parameters in ``named_parameters()``, such as ``layer1.0``.
        module: the block; its output suits ``RetrievalModel.pool``.
        stage: 1 to 4, as in ``layer1`` to ``layer4``.
    """

    name: str
    module: nn.Module
    stage: int


class ForeignWeights(NamedTuple):
    """A classifier's weights, trained elsewhere, under a network's own names.

    Attributes:
        kind: where they are from, in words.
        state: name → tensor of the backbone.
        left_out: keys of the source that no retrieval network has (its classifier).
    """

    kind: str
    state: dict[str, Tensor]
    left_out: list[str]


class RetrievalModel(nn.Module, ABC):
    """Images (B, 3, H, W), normalised, to `ModelOutput`.

    A subclass builds its backbone, calls `add_head`, and says what its stages and blocks are. A network
    keeps no state between two forwards but its parameters and batch-norm statistics.

    Args:
        name: the published name, such as ``ResNet18``.
        checkpoint_activations: in training, keep each block's input only and compute the rest again in
            the backward pass.
        torchvision: what torchvision calls this backbone; "" where it publishes no ImageNet weights for it.
    """

    #: dimensions of height and width in a block's output.
    spatial_dims: ClassVar[tuple[int, int]] = (2, 3)
    feature_width = FEATURE_WIDTH
    stage_channels: tuple[int, int, int, int]
    num_classes: int
    fc: EmbeddingHead

    def __init__(self, name: str, checkpoint_activations: bool = False, torchvision: str = "") -> None:
        super().__init__()
        self.name, self.torchvision = name, torchvision
        self.checkpoint_activations = checkpoint_activations

    def add_head(self, stage_channels: tuple[int, int, int, int], num_classes: int) -> None:
        """Record the widths and append the embedding head, the last step of building a network."""
        self.stage_channels, self.num_classes = stage_channels, num_classes
        self.fc = EmbeddingHead(stage_channels[-1], num_classes)

    @abstractmethod
    def stage_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four stage maps (B, C_i, H_i, W_i) of ``images``."""

    @abstractmethod
    def blocks(self) -> list[Block]:
        """Every block, in the order of the forward pass."""

    @classmethod
    @abstractmethod
    def from_imagenet(cls, state: Mapping[str, Tensor]) -> ForeignWeights | None:
        """An ImageNet classifier's state dict under this network's names; None if it is not one.

        Keys that fit nowhere stay in ``state``, for the strict loading that follows to report.
        """

    def own_form(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` without keys that carry no weights, since the architecture determines them."""
        return dict(state)

    def imagenet_weights(self) -> WeightsEnum | None:
        """torchvision's own ImageNet weights of this backbone; None where it publishes none.

        The first that it published, those that re-identification starts from; few backbones have a second set.
        """
        return get_model_weights(self.torchvision)["IMAGENET1K_V1"] if self.torchvision else None

    def forward(self, images: Tensor) -> ModelOutput:
        """Embed (B, 3, H, W) images, normalised by the ImageNet mean and deviation."""
        feature_maps = self.stage_maps(images)
        pooled_feat = feature_maps[-1].mean(dim=(2, 3))
        retrieval_feat, logits = self.fc(pooled_feat)
        return ModelOutput(logits, retrieval_feat, pooled_feat, feature_maps)

    def pool(self, block_output: Tensor) -> Tensor:
        """Global average of one block's output, (B, C), whatever its layout."""
        return block_output.mean(dim=self.spatial_dims)

    def run(self, function: Callable[[Tensor], Tensor], features: Tensor, *modules: nn.Module) -> Tensor:
        """``function(features)``, recomputed in the backward pass if this network was built to do so.

        Args:
            function: a block, or another function of one tensor.
            features: its input.
            modules: the modules that ``function`` runs, where it is not a module itself.
        """
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            return recomputed(function, features, *(modules or (function,)))
        return function(features)
