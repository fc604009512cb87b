"""The network as it is deployed: pixels or normalised images in, features out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d3still.deploy.description import Description
from d3still.modeling import RetrievalModel

PIXEL_RANGE = 255


class EmbeddingGraph(nn.Module):
    """Features of a batch of images, and nothing else.

    Args:
        network: a trained network; it is put into eval mode.
        description: its own.
        normalize: take uint8 pixels and normalise them here, as `d3still.data.Normalizer` does; otherwise
            take normalised float images.
        l2: divide each feature by its length.
    """

    def __init__(self, network: RetrievalModel, description: Description, normalize: bool, l2: bool) -> None:
        super().__init__()
        self.network, self.normalize, self.l2 = network.eval(), normalize, l2
        self.mirrored = description.mirrored
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (description.mean, description.std)
        )
        self.register_buffer("scale", (1 / (PIXEL_RANGE * std)).float())
        self.register_buffer("offset", (mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 0 … 255 or normalised float32 → (B, D) float32."""
        if self.normalize:
            images = images.to(torch.float32) * self.scale - self.offset
        features = self.network(images).retrieval_feat
        if self.mirrored:
            features = features + self.network(images.flip(3)).retrieval_feat
        return F.normalize(features) if self.l2 else features
