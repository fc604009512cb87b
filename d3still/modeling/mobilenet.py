"""MobileNetV3-Small on torchvision's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchvision.models import MobileNet_V3_Small_Weights, WeightsEnum, mobilenet_v3_small

from d3still.modeling.base import Block, ForeignWeights, RetrievalModel
from d3still.modeling.registry import NETWORKS

#: Features after which the four stage maps are taken: before each halving of the resolution, and the last.
_STAGE_ENDS = (1, 3, 8, 12)
_LAST_STRIDED = 9
_DEPTHWISE = 1  # an inverted residual expands, then filters each channel; only the second has a stride


@NETWORKS.register("MobileNetV3_Small")
class MobileNetModel(RetrievalModel):
    """MobileNetV3-Small; ``last_stride`` is the stride of features[9], its last one that halves the map.

    Args:
        name: ``MobileNetV3_Small``.
        num_classes: identities of the training set.
        last_stride: 1 or 2.
        checkpoint_activations: see `RetrievalModel`.

    Weights start as torchvision's do.
    """

    def __init__(self, name: str, num_classes: int, last_stride: int = 1, checkpoint_activations: bool = False) -> None:
        super().__init__(name, checkpoint_activations)
        self.model = mobilenet_v3_small().features
        self.model[_LAST_STRIDED].block[_DEPTHWISE][0].stride = (last_stride, last_stride)
        self.add_head(tuple(self.model[end].out_channels for end in _STAGE_ENDS), num_classes)

    def stage_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, maps = images, []
        for index, layer in enumerate(self.model):
            features = self.run(layer, features)
            if index in _STAGE_ENDS:
                maps.append(features)
        return tuple(maps)

    def blocks(self) -> list[Block]:
        """The eleven inverted residuals; the convolutions before and after them are not blocks."""
        return [
            Block(f"model.{index}", self.model[index], 1 + sum(end < index for end in _STAGE_ENDS))
            for index in range(1, len(self.model) - 1)
        ]

    @classmethod
    def from_imagenet(cls, state: Mapping[str, Tensor]) -> ForeignWeights | None:
        if "features.0.0.weight" not in state:
            return None
        head = [key for key in state if key.startswith("classifier.")]
        backbone = {k.replace("features.", "model.", 1): v for k, v in state.items() if k not in head}
        return ForeignWeights("ImageNet torchvision", backbone, head)

    def imagenet_weights(self) -> WeightsEnum | None:
        return MobileNet_V3_Small_Weights.IMAGENET1K_V1
