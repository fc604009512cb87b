"""MobileNetV2 and MobileNetV3-Small on torchvision's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torchvision.models import get_model

from d3still.modeling.base import Block, ForeignWeights, RetrievalModel
from d3still.modeling.registry import NETWORKS

_DEPTHWISE = 1  # an inverted residual expands, then filters each channel; only the second has a stride


class _Kind(NamedTuple):
    """What tells one network from the other.

    Attributes:
        torchvision: what torchvision calls it.
        layers: the attribute of its inverted residuals that holds their layers.
        stage_ends: features after which the four stage maps are taken: before each later halving, and the last.
        last_strided: the last of the features that halves the map.
    """

    torchvision: str
    layers: str
    stage_ends: tuple[int, int, int, int]
    last_strided: int


_KINDS = {
    "MobileNetV2": _Kind("mobilenet_v2", "conv", (3, 6, 13, 18), 14),
    "MobileNetV3_Small": _Kind("mobilenet_v3_small", "block", (1, 3, 8, 12), 9),
}


class MobileNetModel(RetrievalModel):
    """A MobileNet; ``last_stride`` is the stride of its last inverted residual that halves the map.

    Args:
        name: ``MobileNetV2`` or ``MobileNetV3_Small``.
        num_classes: identities of the training set.
        last_stride: 1 or 2.
        checkpoint_activations: see `RetrievalModel`.

    Weights start as torchvision's do.
    """

    def __init__(self, name: str, num_classes: int, last_stride: int = 1, checkpoint_activations: bool = False) -> None:
        super().__init__(name, checkpoint_activations, _KINDS[name].torchvision)
        self.kind = _KINDS[name]
        self.model = get_model(self.kind.torchvision).features
        strided = getattr(self.model[self.kind.last_strided], self.kind.layers)
        strided[_DEPTHWISE][0].stride = (last_stride, last_stride)
        self.add_head(tuple(self.model[end].out_channels for end in self.kind.stage_ends), num_classes)

    def stage_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, maps = images, []
        for index, layer in enumerate(self.model):
            features = self.run(layer, features)
            if index in self.kind.stage_ends:
                maps.append(features)
        return tuple(maps)

    def blocks(self) -> list[Block]:
        """The inverted residuals, 17 or 11; the convolutions before and after them are not blocks."""
        return [
            Block(f"model.{index}", self.model[index], 1 + sum(end < index for end in self.kind.stage_ends))
            for index in range(1, len(self.model) - 1)
        ]

    @classmethod
    def from_imagenet(cls, state: Mapping[str, Tensor]) -> ForeignWeights | None:
        if "features.0.0.weight" not in state:
            return None
        head = [key for key in state if key.startswith("classifier.")]
        backbone = {k.replace("features.", "model.", 1): v for k, v in state.items() if k not in head}
        return ForeignWeights("ImageNet torchvision", backbone, head)


for _name in _KINDS:
    NETWORKS.register(_name)(MobileNetModel)
