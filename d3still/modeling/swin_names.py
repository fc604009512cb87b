"""Swin V2's weights under three naming schemes: timm's (published), torchvision's and the authors'.

timm and torchvision differ in names, and in the attention's biases: timm keeps those of queries and
values (``q_bias``, ``v_bias``), torchvision one vector for queries, keys and values whose middle third
it treats as zero. The authors' files are timm's but for one thing: the layer that merges patches ends
a stage there, and starts the next one here. Shapes agree throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

from d3still.errors import UserError
from d3still.modeling.base import ForeignWeights

WINDOW_SIZE = 8
_COORDINATES = "relative_coords_table"
_POSITION_TABLES = (_COORDINATES, "relative_position_index", "attn_mask")

#: Parts of names, (timm's, torchvision's).
_PAIRS = (
    ("patch_embed.proj.", "features.0.0."),
    ("patch_embed.norm.", "features.0.2."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.3."),
)


def timm_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's Swin V2 weights under timm's names, without position tables."""
    renamed: dict[str, Tensor] = {}
    for key, value in without_position_tables(state).items():
        for timm, torchvision in _PAIRS:
            key = key.replace(torchvision, timm)
        name = re.sub(r"^features\.(\d+)\.", _timm_layer, key)
        if name.endswith(".qkv.bias"):
            queries, _, values = value.chunk(3)  # the middle, of the keys, is never used
            stem = name.removesuffix("qkv.bias")
            renamed |= {stem + "q_bias": queries.clone(), stem + "v_bias": values.clone()}
        else:
            renamed[name] = value
    return renamed


def without_position_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the tables that follow from the window size.

    Raises:
        UserError: when they belong to windows of another size.
    """
    expected = _position_tables()[_COORDINATES].shape
    for key, value in state.items():
        if key.endswith("." + _COORDINATES) and value.shape != expected:
            side = (value.shape[1] + 1) // 2
            raise UserError(
                f"{key}: these Swin V2 weights are for windows of {side}×{side}; the networks here use "
                f"{WINDOW_SIZE}×{WINDOW_SIZE} (files named window{WINDOW_SIZE}_256)"
            )
    return {key: value for key, value in state.items() if not key.endswith(_POSITION_TABLES)}


def from_any_imagenet(state: Mapping[str, Tensor]) -> ForeignWeights | None:
    """A Swin V2 ImageNet classifier (timm's, the authors' or torchvision's) under published names."""
    if "patch_embed.proj.weight" in state:
        source, named = "timm", _merging_first(without_position_tables(state))
    elif "features.1.0.attn.qkv.weight" in state:
        source, named = "torchvision", timm_from_torchvision(state)
    else:
        return None
    head = [key for key in named if key.startswith("head.")]
    backbone = {f"model.{key}": value for key, value in named.items() if key not in head}
    return ForeignWeights(f"ImageNet {source}", backbone, head)


def _merging_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names in which ``downsample`` starts a stage, also for files in which it ends one."""
    if not any(key.startswith("layers.0.downsample.") for key in state):
        return state
    pattern = r"^layers\.(\d+)\.downsample\."
    return {re.sub(pattern, lambda m: f"layers.{int(m[1]) + 1}.downsample.", k): v for k, v in state.items()}


def _timm_layer(match: re.Match[str]) -> str:
    """``features.1.`` → ``layers.0.blocks.``; ``features.2.`` → ``layers.1.downsample.``"""
    stage, is_blocks = divmod(int(match[1]), 2)
    return f"layers.{stage}.{'blocks' if is_blocks else 'downsample'}."


def _position_tables() -> dict[str, Tensor]:
    """torchvision's tables, which depend on the window size alone."""
    attention = ShiftedWindowAttentionV2(1, [WINDOW_SIZE] * 2, [0, 0], num_heads=1)
    return dict(attention.named_buffers())
