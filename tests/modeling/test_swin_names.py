"""Swin V2's weights pass between timm's and torchvision's names without loss."""

import re

import pytest
import torch
import torchvision
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

from d3still.modeling import build_model
from d3still.modeling.swin_names import WINDOW_SIZE, timm_from_torchvision, without_position_tables

NAMES = {"patch_embed.proj.": "features.0.0.", "patch_embed.norm.": "features.0.2.", "fc1.": "0.", "fc2.": "3."}


def torchvision_from_timm(state):
    """The way back: torchvision's names, one bias for queries, keys (zero) and values, and its position tables."""
    renamed = {}
    for key, value in without_position_tables(state).items():
        for ours, theirs in NAMES.items():
            key = key.replace(ours, theirs)
        name = re.sub(r"^layers\.(\d+)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}.", key)
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1])}.", name)
        if name.endswith(".q_bias"):
            values = state[key.removesuffix("q_bias") + "v_bias"]
            renamed[name.removesuffix("q_bias") + "qkv.bias"] = torch.cat([value, torch.zeros_like(value), values])
        elif not name.endswith(".v_bias"):
            renamed[name] = value
    tables = dict(ShiftedWindowAttentionV2(1, [WINDOW_SIZE] * 2, [0, 0], num_heads=1).named_buffers())
    for key in [key for key in renamed if key.endswith(".logit_scale")]:
        renamed |= {key.removesuffix("logit_scale") + table: value for table, value in tables.items()}
    return renamed


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = torchvision.models.swin_v2_t()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):  # fresh ones are zero and would hide a mix-up
            torch.nn.init.normal_(parameter)
    return net.eval()


def test_there_and_back(net):
    state = net.state_dict()
    back = torchvision_from_timm(timm_from_torchvision(state))
    assert set(back) == set(state)
    for key, value in state.items():
        if key.endswith("qkv.bias"):
            value = value.clone()
            value.chunk(3)[1].zero_()  # the keys' bias, which torchvision stores but ignores
        assert torch.equal(back[key], value), key


def test_timm_names_are_the_published_ones(net):
    with torch.device("meta"):
        published = build_model("Swin_Transformer_V2_Tiny", 4).state_dict()
    ours = {f"model.{key}": value.shape for key, value in timm_from_torchvision(net.state_dict()).items()}
    assert {k: v for k, v in ours.items() if not k.startswith("model.head.")} == {
        k: v.shape for k, v in published.items() if not k.startswith("fc.")
    }


def test_torchvision_runs_our_weights_strictly(net):
    """The way out: our network's weights, in torchvision's own class, give the same features."""
    model = build_model("Swin_Transformer_V2_Tiny", 4).eval()
    with torch.no_grad():
        for block in model.blocks():
            block.module.attn.q_bias.normal_()
            block.module.attn.v_bias.normal_()
    state = {k.removeprefix("model."): v for k, v in model.state_dict().items() if k.startswith("model.")}
    head = {k: v for k, v in net.state_dict().items() if k.startswith("head.")}
    net.load_state_dict(torchvision_from_timm(state) | head)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = net.permute(net.norm(net.features(images)))
        torch.testing.assert_close(model(images).feature_maps[-1], expected)
