"""3×3 convolutions of maps of a few pixels, in training on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Height and width up to which every output pixel of a 3×3 convolution sees the whole map.
SMALL = 2


class SmallMapConv2d(nn.Conv2d):
    """A 3×3 convolution, padding 1, without bias, that takes maps of at most 2×2 pixels for what they are.

    There an output pixel is a linear layer of the whole map, with those taps of the kernel that meet it. A CPU's
    convolution also multiplies the padding, and computes its gradients many times slower than a matrix product:
    a step of ResNet18 at 16×16 pixels takes a third of the time. Only in training, so that what is exported,
    counted or evaluated is the convolution itself.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        height, width = features.shape[2:]
        if not self.training or features.device.type != "cpu" or max(height, width) > SMALL:
            return super().forward(features)
        flat, (down, right) = features.flatten(1), self.stride
        rows = [
            [F.linear(flat, self._taps(top, left, height, width)) for left in range(0, width, right)]
            for top in range(0, height, down)
        ]
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    def _taps(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The taps of output pixel (top, left) that meet the map, (out_channels, C·height·width)."""
        return self.weight[:, :, 1 - top : 1 - top + height, 1 - left : 1 - left + width].flatten(1)


def use_small_maps(network: nn.Module) -> None:
    """Let every plain 3×3 convolution of ``network`` be a `SmallMapConv2d`; weights and names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = SmallMapConv2d  # a new module would draw weights of its own


def _is_plain(conv: nn.Conv2d) -> bool:
    shape = conv.kernel_size, conv.padding, conv.dilation
    return shape == ((3, 3), (1, 1), (1, 1)) and conv.groups == 1 and conv.bias is None
