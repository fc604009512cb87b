"""What the rest of the toolbox relies on in every network."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from d3still.errors import UserError
from d3still.modeling import NETWORKS, RetrievalModel, build_model
from d3still.modeling.resnet import InstanceBatchNorm

LIGHT = ["ResNet18", "ResNet18_ibn_a", "MobileNetV2", "MobileNetV3_Small", "Swin_Transformer_V2_Tiny"]
BLOCKS = {  # residual or transformer blocks in each stage, from the papers' tables
    "ResNet18": (2, 2, 2, 2),
    "ResNet34": (3, 4, 6, 3),
    "ResNet50": (3, 4, 6, 3),
    "ResNet101_ibn_a": (3, 4, 23, 3),
    "MobileNetV2": (3, 3, 7, 4),
    "MobileNetV3_Small": (1, 2, 5, 3),
    "Swin_Transformer_V2_Tiny": (2, 2, 6, 2),
    "Swin_Transformer_V2_Base": (2, 2, 18, 2),
}


def _forward(model, shape=(2, 3, 64, 64)):
    torch.manual_seed(1)
    return model(torch.randn(shape))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_named_staged_and_ordered(name):
    with torch.device("meta"):
        model = build_model(name, 3)
    blocks = model.blocks()
    assert tuple(sum(block.stage == stage for block in blocks) for stage in (1, 2, 3, 4)) == BLOCKS[name]
    assert [block.stage for block in blocks] == sorted(block.stage for block in blocks)
    assert all(model.get_submodule(block.name) is block.module for block in blocks)


@pytest.mark.parametrize("name", LIGHT)
def test_blocks_run_in_order_and_their_output_pools(name):
    model = build_model(name, 3).eval()
    ran, pooled = [], []

    def note(module, _, output):
        ran.append(module)
        pooled.append(model.pool(output))

    handles = [block.module.register_forward_hook(note) for block in model.blocks()]
    with torch.no_grad():
        output = _forward(model)
    for handle in handles:
        handle.remove()
    assert ran == [block.module for block in model.blocks()]
    widths = [model.stage_channels[block.stage - 1] for block in model.blocks()]
    if name.startswith("MobileNet"):  # its stages end in other widths than their first blocks have
        widths = [block.module.out_channels for block in model.blocks()]
    assert [tuple(feature.shape) for feature in pooled] == [(2, width) for width in widths]
    last_of_first_stage = [block.stage for block in model.blocks()].index(2) - 1
    torch.testing.assert_close(pooled[last_of_first_stage], output.feature_maps[0].mean(dim=(2, 3)))


@pytest.mark.parametrize("name", LIGHT)
def test_an_image_alone_gives_what_it_gives_in_a_batch(name):
    model = build_model(name, 3).double().eval()
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
        again = model(images)
    torch.testing.assert_close(together.retrieval_feat[1:2], alone.retrieval_feat, rtol=1e-9, atol=1e-9)
    assert torch.equal(together.logits, again.logits), "a forward left something behind"


@pytest.mark.parametrize(
    ("name", "strides"),
    [("ResNet18", (8, 4)), ("ResNet50", (8, 4)), ("MobileNetV2", (8, 4)), ("MobileNetV3_Small", (8, 4))],
)
def test_last_stride_two_halves_the_last_map_only(name, strides):
    maps = {}
    for stride in (1, 2):
        with torch.device("meta"):
            model = build_model(name, 3, last_stride=stride).eval()
            maps[stride] = _forward(model, (1, 3, 128, 128)).feature_maps
    assert [f.shape for f in maps[1][:3]] == [f.shape for f in maps[2][:3]]
    assert (maps[1][3].shape[-1], maps[2][3].shape[-1]) == strides


def test_mobilenetv2s_stage_maps_are_those_before_each_later_halving():
    """Strides 4, 8, 16, 32 and widths of Table 2 of Sandler et al., CVPR 2018."""
    with torch.device("meta"):
        maps = _forward(build_model("MobileNetV2", 3, last_stride=2).eval(), (1, 3, 64, 96)).feature_maps
    assert [tuple(f.shape) for f in maps] == [(1, 24, 16, 24), (1, 32, 8, 12), (1, 96, 4, 6), (1, 1280, 2, 3)]


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 160), (50, 70), (384, 384), (33, 33)])
def test_swin_takes_any_size(size):
    with torch.device("meta"):
        output = _forward(build_model("Swin_Transformer_V2_Tiny", 3).eval(), (1, 3, *size))
    height, width = (side // 4 for side in size)
    expected = []
    for channels in (96, 192, 384, 768):
        expected.append((1, channels, height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    assert [tuple(f.shape) for f in output.feature_maps] == expected


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("size", [(32, 32), (50, 70)])
def test_low_and_odd_resolutions_train(name, size):
    model = build_model(name, 3).train()
    output = _forward(model, (2, 3, *size))
    output.logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_instance_batch_norm_is_its_two_halves():
    layer = InstanceBatchNorm(6).double()
    features = torch.randn(4, 6, 5, 7, dtype=torch.float64) * 3 + 1
    output = layer(features)
    per_image = output[:, :3].flatten(2)
    over_batch = output[:, 3:].transpose(0, 1).flatten(1)
    for normed in (per_image, over_batch):
        torch.testing.assert_close(normed.mean(-1), torch.zeros_like(normed.mean(-1)))
        assert ((normed.var(-1, unbiased=False) - 1).abs() < 1e-3).all()


def test_ibn_sits_in_the_first_norm_of_stages_one_to_three():
    with torch.device("meta"):
        model = build_model("ResNet50_ibn_a", 3)
    places = [name for name, module in model.named_modules() if isinstance(module, InstanceBatchNorm)]
    assert places == [f"{block.name}.bn1" for block in model.blocks() if block.stage < 4]


def test_drop_path_rises_linearly_to_a_tenth():
    with torch.device("meta"):
        model = build_model("Swin_Transformer_V2_Tiny", 3)
    rates = [block.module.stochastic_depth.p for block in model.blocks()]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_swin_trains_no_key_bias():
    """The key part of the joint bias is zero before and after a step, since no parameter holds it."""
    model = build_model("Swin_Transformer_V2_Tiny", 3).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        _forward(model).logits.square().sum().backward()
        optimizer.step()
    assert not [name for name, _ in model.named_parameters() if "k_bias" in name or "qkv.bias" in name]
    attention = model.blocks()[0].module.attn
    assert attention.q_bias.grad is not None and attention.v_bias.grad.abs().max() > 0


@pytest.mark.parametrize("name", LIGHT)
def test_recomputing_changes_nothing_but_memory(name):
    """Outputs, gradients and batch-norm buffers are bit-equal; drop path draws the same images."""
    torch.manual_seed(3)
    plain = build_model(name, 3).train()
    recomputing = build_model(name, 3, checkpoint_activations=True).train()
    recomputing.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(4)
        output = model(torch.randn(4, 3, 64, 64))
        (output.logits.square().sum() + output.pooled_feat.square().mean()).backward()
        results.append(output)
    assert torch.equal(results[0].retrieval_feat, results[1].retrieval_feat)
    for (key, one), other in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
    for (key, one), other in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(one, other), key
    momenta = [[m.momentum for m in model.modules() if hasattr(m, "momentum")] for model in (plain, recomputing)]
    assert momenta[0] == momenta[1]


def test_recomputing_saves_most_activations():
    saved = {}
    for checkpoint in (False, True):
        model = build_model("ResNet50", 3, checkpoint_activations=checkpoint).train()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.update({tensor.data_ptr(): tensor.numel()}) or tensor, lambda t: t
        ):
            _forward(model)
        parameters = {p.data_ptr() for p in model.parameters()}
        saved[checkpoint] = sum(size for pointer, size in sizes.items() if pointer not in parameters)
    assert saved[True] < 0.3 * saved[False]


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_recomputing_is_for_training_only(mode, monkeypatch):
    monkeypatch.setattr("d3still.modeling.base.recomputed", lambda *_: pytest.fail("recomputed"))
    model = build_model("ResNet18", 3, checkpoint_activations=True).train(mode == "no_grad")
    with torch.set_grad_enabled(mode == "eval"):
        _forward(model)


def _keep_copy(kept, _module, _inputs, output):
    kept.append(output.clone())


def test_feature_maps_outlive_the_forward():
    """No later block may overwrite a stage map in place."""
    for name in LIGHT:
        model = build_model(name, 3).eval()
        kept = []
        ends = {block.stage: block.module for block in model.blocks()}
        keep = partial(_keep_copy, kept)
        hooks = [module.register_forward_hook(keep) for module in ends.values()]
        with torch.no_grad():
            maps = _forward(model).feature_maps
        for hook in hooks:
            hook.remove()
        for seen, returned in list(zip(kept, maps, strict=True))[:3]:
            seen = seen.permute(0, 3, 1, 2) if name.startswith("Swin") else seen
            assert torch.equal(seen, returned)


def test_channels_last_gives_the_same_features():
    for name in LIGHT:
        model = build_model(name, 3).double().eval()
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            expected = model(images).retrieval_feat
            model.to(memory_format=torch.channels_last)
            actual = model(images.to(memory_format=torch.channels_last)).retrieval_feat
        torch.testing.assert_close(actual, expected)


def test_bfloat16_autocast_runs_every_kind():
    for name in LIGHT:
        model = build_model(name, 3).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = _forward(model)
        output.logits.float().sum().backward()
        assert torch.isfinite(output.retrieval_feat).all()


def test_a_network_is_deep_copied_whole():
    model = build_model("MobileNetV3_Small", 3).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(_forward(model).logits, _forward(twin).logits)


def test_head_starts_as_documented():
    torch.manual_seed(0)
    model = build_model("ResNet18", 500)
    assert model.fc.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert model.fc.add_block[2].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert model.fc.classifier.bias is None and model.fc.add_block[2].bias is None
    assert (model.feature_width, model.num_classes, model.name) == (512, 500, "ResNet18")


def test_training_from_scratch_learns():
    """Four colours, told apart after twenty steps: the fresh weights are fit to be trained."""
    torch.manual_seed(0)
    model = build_model("ResNet18", 4).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    labels = torch.arange(4).repeat(4)
    colours = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1]])
    losses = []
    for _ in range(20):
        images = colours[labels][:, :, None, None] + 0.3 * torch.randn(16, 3, 32, 32)
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(4.0).log().item(), abs=0.05)
    assert losses[-1] < 0.3


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="'ResNet51' is not a known network; did you mean 'ResNet"):
        build_model("ResNet51", 3)
    with pytest.raises(UserError, match="Swin_Transformer_V2_Tiny"):
        build_model("Swin_Transformer_V2_tiny", 3)


@pytest.mark.parametrize(("classes", "stride", "named"), [(0, 1, "class"), (3, 3, "LAST_STRIDE")])
def test_impossible_settings_are_refused(classes, stride, named):
    with pytest.raises(UserError, match=named):
        build_model("ResNet18", classes, last_stride=stride)


def test_a_users_own_network_needs_one_decorator():
    class Tiny(RetrievalModel):
        def __init__(self, name, num_classes, last_stride=1, checkpoint_activations=False):
            super().__init__(name, checkpoint_activations)
            widths = (4, 8, 8, 16)
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise((3, *widths)))
            self.add_head(widths, num_classes)

        def stage_maps(self, images):
            maps = []
            for layer in self.layers:
                images = self.run(layer, images)
                maps.append(images)
            return tuple(maps)

        def blocks(self):
            return []

        @classmethod
        def from_imagenet(cls, state):
            return None

    NETWORKS.register("TinyForTests")(Tiny)
    try:
        output = _forward(build_model("TinyForTests", 5))
    finally:
        del NETWORKS._entries["TinyForTests"]
    assert (output.logits.shape, output.retrieval_feat.shape) == ((2, 5), (2, 512))
