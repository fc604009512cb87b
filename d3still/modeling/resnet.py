"""ResNet and ResNet-IBN-a on torchvision's ResNet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck

from d3still.modeling.base import Block, ForeignWeights, RetrievalModel
from d3still.modeling.registry import NETWORKS
from d3still.modeling.small_maps import use_small_maps

IBN_SUFFIX = "_ibn_a"

NAMES = ("ResNet18", "ResNet34", "ResNet50", "ResNet101")


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance norm on the first half of the channels, batch norm on the others.

    Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return torch.cat((self.IN(features[:, : self.half]), self.BN(features[:, self.half :])), dim=1)


class ResNetModel(RetrievalModel):
    """A residual network; ``last_stride`` is the stride of its fourth stage (1 keeps the map twice as large).

    Args:
        name: ``ResNet18``, ``34``, ``50``, ``101``, or one of these with ``_ibn_a``.
        num_classes: identities of the training set.
        last_stride: 1 or 2.
        checkpoint_activations: see `RetrievalModel`.

    Weights start as torchvision's do: Kaiming's rule (fan out), norms at 1 and 0.
    """

    def __init__(self, name: str, num_classes: int, last_stride: int = 1, checkpoint_activations: bool = False) -> None:
        plain, is_ibn = name.removesuffix(IBN_SUFFIX).lower(), name.endswith(IBN_SUFFIX)
        super().__init__(name, checkpoint_activations, "" if is_ibn else plain)
        net = get_model(plain)
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        if is_ibn:
            self.maxpool: nn.Module = net.maxpool  # kernel 3, stride 2, padding 1
            for block in (*net.layer1, *net.layer2, *net.layer3):
                block.bn1 = InstanceBatchNorm(block.bn1.num_features)
        else:
            self.maxpool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        _set_stride(self.layer4[0], last_stride)
        use_small_maps(self)
        self.add_head(tuple(64 * 2**i * self.layer1[0].expansion for i in range(4)), num_classes)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The four stages, each a sequence of residual blocks."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def stage_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.run(self._stem, images, self.bn1)
        maps = []
        for stage in self.stages:
            for block in stage:
                features = self.run(block, features)
            maps.append(features)
        return tuple(maps)

    def blocks(self) -> list[Block]:
        return [
            Block(f"layer{number}.{index}", block, number)
            for number, stage in enumerate(self.stages, start=1)
            for index, block in enumerate(stage)
        ]

    @classmethod
    def from_imagenet(cls, state: Mapping[str, Tensor]) -> ForeignWeights | None:
        if "fc.weight" not in state or "conv1.weight" not in state:
            return None
        head = [key for key in state if key in ("fc.weight", "fc.bias")]
        source = "IBN-Net" if any(".bn1.IN." in key for key in state) else "torchvision"
        return ForeignWeights(f"ImageNet {source}", {k: v for k, v in state.items() if k not in head}, head)

    def _stem(self, images: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))


def _set_stride(block: BasicBlock | Bottleneck, stride: int) -> None:
    """Give a stage's first block, built with stride 2, another stride."""
    strided = block.conv2 if isinstance(block, Bottleneck) else block.conv1
    for convolution in (strided, block.downsample[0]):
        convolution.stride = (stride, stride)
    block.stride = stride


for _name in NAMES:
    NETWORKS.register(_name)(ResNetModel)
    NETWORKS.register(_name + IBN_SUFFIX)(ResNetModel)
