"""Swin Transformer V2 on torchvision's modules, under timm's names."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlockV2,
    shifted_window_attention,
)

from d3still.modeling.base import Block, RetrievalModel
from d3still.modeling.registry import NETWORKS
from d3still.modeling.swin_names import WINDOW_SIZE, from_any_imagenet, without_position_tables

logger = logging.getLogger(__name__)

PATCH_SIZE = 4
#: Share of images that skip the last block in training; it rises linearly from 0 at the first.
DROP_PATH = 0.1


class Variant(NamedTuple):
    """What distinguishes the three sizes (Liu et al., "Swin Transformer V2", CVPR 2022)."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    torchvision: str


VARIANTS = {
    "Swin_Transformer_V2_Tiny": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24), "swin_v2_t"),
    "Swin_Transformer_V2_Small": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24), "swin_v2_s"),
    "Swin_Transformer_V2_Base": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32), "swin_v2_b"),
}


class SplitBiasAttention(ShiftedWindowAttentionV2):
    """torchvision's window attention with the biases of queries and values apart, as timm has them.

    Keys have no bias: there is no parameter that training could move away from zero. The position
    tables follow from the window size, so the state dict does not carry them.
    """

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, qkv_bias=False, **kwargs)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        for table in ("relative_coords_table", "relative_position_index"):
            self.register_buffer(table, getattr(self, table), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, W, C) → the same shape; padded to whole windows and cut back."""
        return shifted_window_attention(
            features,
            self.qkv.weight,
            self.proj.weight,
            self.get_relative_position_bias(),
            self.window_size,
            self.num_heads,
            shift_size=self.shift_size,
            attention_dropout=self.attention_dropout,
            dropout=self.dropout,
            qkv_bias=torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)),
            proj_bias=self.proj.bias,
            logit_scale=self.logit_scale,
            training=self.training,
        )


class NamedSwinBlock(SwinTransformerBlockV2):
    """torchvision's block with the attention above and the MLP's layers named as in timm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, attn_layer=SplitBiasAttention, **kwargs)
        first, activation, _, second, _ = self.mlp  # the rest is dropout, which is off
        self.mlp = nn.Sequential(OrderedDict(fc1=first, act=activation, fc2=second))


class SwinModel(RetrievalModel):
    """Swin Transformer V2 with windows of 8×8; images of any size, padded inside to whole windows.

    Args:
        name: ``Swin_Transformer_V2_Tiny``, ``_Small`` or ``_Base``.
        num_classes: identities of the training set.
        last_stride: without effect: every stage of this network halves the map by merging patches.
        checkpoint_activations: see `RetrievalModel`.

    Weights start as torchvision's do: linear layers truncated normal (0.02), norms at 1 and 0.
    """

    spatial_dims = (1, 2)  # blocks work on (B, H, W, C)

    def __init__(self, name: str, num_classes: int, last_stride: int = 1, checkpoint_activations: bool = False) -> None:
        variant = VARIANTS[name]
        super().__init__(name, checkpoint_activations, variant.torchvision)
        if last_stride != 1:
            logger.warning("%s has no last stride; LAST_STRIDE %s has no effect", name, last_stride)
        net = SwinTransformer(
            patch_size=[PATCH_SIZE, PATCH_SIZE],
            embed_dim=variant.width,
            depths=list(variant.depths),
            num_heads=list(variant.heads),
            window_size=[WINDOW_SIZE, WINDOW_SIZE],
            stochastic_depth_prob=DROP_PATH,
            block=NamedSwinBlock,
            downsample_layer=PatchMergingV2,
        )
        self.model = _under_timm_names(net)
        self.add_head(tuple(variant.width * 2**i for i in range(4)), num_classes)

    def stage_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, maps = self.model.patch_embed(images), []
        for stage in self.model.layers:
            features = stage.downsample(features)
            for block in stage.blocks:
                features = self.run(block, features)
            maps.append(features)
        maps[-1] = self.model.norm(features)
        return tuple(channels_first(features) for features in maps)

    def blocks(self) -> list[Block]:
        return [
            Block(f"model.layers.{i}.blocks.{j}", block, i + 1)
            for i, stage in enumerate(self.model.layers)
            for j, block in enumerate(stage.blocks)
        ]

    own_form = staticmethod(without_position_tables)
    from_imagenet = staticmethod(from_any_imagenet)


def channels_first(features: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W), without a copy."""
    return features.permute(0, 3, 1, 2)


def _under_timm_names(net: SwinTransformer) -> nn.Sequential:
    """torchvision's modules in a tree whose names are timm's: a stage starts by merging patches."""
    patch_embed, *parts = net.features
    mergers, stages = [nn.Identity(), *parts[1::2]], parts[0::2]
    layers = [
        nn.Sequential(OrderedDict(downsample=merger, blocks=blocks))
        for merger, blocks in zip(mergers, stages, strict=True)
    ]
    projection, to_channels_last, norm = patch_embed
    embed = nn.Sequential(OrderedDict(proj=projection, permute=to_channels_last, norm=norm))
    return nn.Sequential(OrderedDict(patch_embed=embed, layers=nn.Sequential(*layers), norm=net.norm))


for _name in VARIANTS:
    NETWORKS.register(_name)(SwinModel)
