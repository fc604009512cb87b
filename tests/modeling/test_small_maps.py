"""Convolutions of small maps are the convolution itself, forwards and backwards."""

import pytest
import torch
from torch import nn

from d3still.modeling import build_model
from d3still.modeling.small_maps import SmallMapConv2d, use_small_maps


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 2)])
def test_a_small_map_gives_the_convolutions_output_and_gradients(size, stride):
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 5, 3, stride=stride, padding=1, bias=False).double()
    ours = nn.Sequential(nn.Conv2d(3, 5, 3, stride=stride, padding=1, bias=False).double())
    ours[0].load_state_dict(expected.state_dict())
    use_small_maps(ours)
    assert type(ours[0]) is SmallMapConv2d
    results = []
    for conv in (expected, ours):
        images = torch.randn(4, 3, *size, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
        output = conv(images)
        output.square().sum().backward()
        weight = conv.weight if conv is expected else conv[0].weight
        results.append((output, images.grad, weight.grad))
    for theirs, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_only_plain_three_by_three_convolutions_change_and_weights_stay():
    torch.manual_seed(0)
    before = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=True),
        nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=2),
        nn.Conv2d(4, 4, 3, padding=0, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
    )
    weights = [conv.weight.clone() for conv in before]
    use_small_maps(before)
    assert [type(conv) is SmallMapConv2d for conv in before] == [True, False, False, False, False, False]
    assert all(torch.equal(conv.weight, weight) for conv, weight in zip(before, weights, strict=True))


def test_evaluation_is_the_convolution_bit_for_bit():
    net = build_model("ResNet18", num_classes=3).eval()
    conv = net.layer4[0].conv2
    features = torch.randn(2, 512, 1, 1, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(conv(features), nn.Conv2d.forward(conv, features))
