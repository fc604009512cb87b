"""Every backbone is the published one: names, shapes, sizes and outputs in float64."""

import numpy as np
import pytest
import torch

from d3still.modeling import build_model, load_weights
from tests import conformance
from tests.modeling.filling import filled, images

PUBLISHED, REFERENCE = conformance.load("models")
BIG = ("Swin_Transformer_V2_Small", "Swin_Transformer_V2_Base")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in PUBLISHED]
OUTPUTS = {"logits": "logits", "retrieval": "retrieval_feat", "pooled": "pooled_feat"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_has_the_published_keys_and_shapes(name):
    entry = PUBLISHED[name]
    with torch.device("meta"):
        model = build_model(name, entry["num_classes"], last_stride=entry["last_stride"])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == entry["keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
    assert list(model.stage_channels) == [shape[1] for shape in entry["stage_shapes"]]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_published_ones(name):
    entry = PUBLISHED[name]
    model = build_model(name, entry["num_classes"], last_stride=entry["last_stride"]).double().eval()
    load_weights(model, filled(model.state_dict()))
    with torch.no_grad():
        output = model(images(entry["input"]))
    assert [list(feature_map.shape) for feature_map in output.feature_maps] == entry["stage_shapes"]
    for stored, field in OUTPUTS.items():
        expected = REFERENCE[f"{name}__{stored}"]
        error = np.abs(getattr(output, field).numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-12, f"{field}: relative error {error}"
    assert torch.equal(output.pooled_feat, output.feature_maps[-1].mean(dim=(2, 3)))
